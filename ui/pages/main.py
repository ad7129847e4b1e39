"""The trace page. It talks to the API through the client alone; its state stands in the URL."""

import os

import streamlit as st

from search_api.client import Client
from train_hooks.export_format.errors import KisekiError
from ui.pages.trace_view import show_trace

__all__: list[str] = []

st.set_page_config(page_title="kiseki · trace", page_icon="軌", layout="wide")


@st.cache_resource
def _client() -> Client:
    return Client(os.environ["KISEKI_API_URL"])


def _page() -> None:
    st.title("Trace")
    st.caption(
        "Where does a text occur in what the model was trained on? A trace shows where and when it was consumed; it does "
        "not show why the model wrote it."
    )
    client = _client()
    try:
        runs = client.runs()
    except KisekiError as error:
        st.error(str(error))
        return
    run = runs[0]
    st.caption(
        f"run **{run['run_id']}** · generation {run['generation']} · {run['num_sequences']:,} sequences · "
        f"{run['num_tokens']:,} tokens · steps to {run['last_step']:,}"
    )
    text = st.text_area("Text", key="text", bind="query-params", height=160, placeholder="Paste what a model wrote")
    left, middle, right = st.columns(3)
    min_length = left.number_input(
        "Shortest span, in tokens", min_value=1, max_value=1000, value=8, key="min_length", bind="query-params"
    )
    checkpoint = middle.slider(
        "As the model checkpoint of this step had seen it", min_value=1, max_value=max(2, run["last_step"]),
        value=max(2, run["last_step"]), key="checkpoint", bind="query-params",
    )  # fmt: skip
    hits = right.number_input(
        "Hits listed for a span", min_value=1, max_value=100, value=5, key="hits", bind="query-params"
    )
    if not text.strip():
        st.info("Paste a text above to see which parts of it occur in the training data.")
        return
    try:
        found = client.trace(
            text, run=run["run_id"], min_length=int(min_length), before_step=int(checkpoint) + 1, num_hits=int(hits)
        )
    except KisekiError as error:
        st.error(str(error))
        return
    show_trace(found)


_page()
