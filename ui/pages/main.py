"""The pages: which there are, the line at the top of each, and the run and language that all of them share."""

import os
from collections.abc import Iterable
from functools import partial
from typing import Any

import streamlit as st

from ui.html.messages import origin_html
from ui.html.places import Place
from ui.html.texts import LANGUAGES, say_in
from ui.pages import documents_page, runs_page, search_page, sequence_page, sql_page, steps_page, trace_page
from ui.pages.api import problems_in_words, run_of, runs
from ui.pages.linked_html import GO_PAGE, show_html
from ui.pages.state import View, change_url, set_widget

__all__: list[str] = []

SHOWN = {
    "trace": trace_page.show,
    "search": search_page.show,
    "sequence": sequence_page.show,
    "steps": steps_page.show,
    "documents": documents_page.show,
    "sql": sql_page.show,
    "runs": runs_page.show,
}
TITLES = {
    "trace": "Trace", "search": "Search", "sequence": "Sequence", "steps": "Steps", "documents": "Documents",
    "sql": "SQL", "runs": "Runs",
}  # fmt: skip


def _main() -> None:
    lang = st.query_params.get("lang", "en")
    lang = lang if lang in LANGUAGES else "en"
    say = say_in(lang)
    pages = {
        name: st.Page(partial(_show, name), title=say(TITLES[name]), url_path=name, default=name == "trace")
        for name in SHOWN
    }
    current = st.navigation(list(pages.values()), position="hidden")
    name = current.url_path or "trace"
    st.set_page_config(page_title=f"{say(TITLES[name])} · kiseki", page_icon="軌", layout="wide")
    moved = st.session_state.pop(GO_PAGE, None)
    if moved is not None and moved[0] in pages:
        st.switch_page(pages[moved[0]], query_params=moved[1])
    _top(pages, name, lang)
    current.run()


def _top(pages: dict[str, Any], name: str, lang: str) -> None:
    """The pages, and the other language, as links that keep the run."""
    say = say_in(lang)
    params = st.query_params.to_dict()
    kept: dict[str, str | Iterable[str]] = {key: params[key] for key in ("run", "lang") if key in params}
    run_id, slash, _ = params.get("address", "").partition("/")
    if "run" not in kept and slash:
        kept["run"] = run_id
    st.html("<style>.stMainBlockContainer { padding-top: 3.2rem; }</style>")
    with st.container(horizontal=True, gap="small", key="top"):
        for page in pages:
            label = f"**{say(TITLES[page])}**" if page == name else say(TITLES[page])
            st.page_link(pages[page], label=label, query_params=kept)
        other = "ja" if lang == "en" else "en"
        switched = {**params, "lang": other} if other != "en" else {k: v for k, v in params.items() if k != "lang"}
        st.page_link(pages[name], label=LANGUAGES[other], query_params=switched)


def _show(name: str) -> None:
    params = st.query_params.to_dict()
    lang = params.get("lang", "en")
    lang = lang if lang in LANGUAGES else "en"
    say = say_in(lang)
    with problems_in_words(name, say, lang):
        run_ids = [run["run_id"] for run in runs()]
        wanted = params.get("run") or _run_of_address(params.get("address", ""), run_ids) or run_ids[0]
        if len(run_ids) > 1 or wanted not in run_ids:
            _choose_run(run_ids, wanted if wanted in run_ids else None, say("Run"))
            params = {**params, "run": wanted}
        run = run_of(wanted)
        if origin := origin_html(say, run):
            show_html(origin, key="origin", page=name, lang=lang)
        SHOWN[name](View(Place(name, params), run, say, lang))


def _run_of_address(address: str, run_ids: list[str]) -> str | None:
    run_id = address.partition("/")[0]
    return run_id if run_id in run_ids else None


def _choose_run(run_ids: list[str], shown: str | None, label: str) -> None:
    set_widget("in_run", shown)
    st.selectbox(label, run_ids, index=None, key="in_run", on_change=_go_to_run, width=320)


def _go_to_run() -> None:
    """Another run has other sequences, spans and steps: only the text and the language stay."""
    kept = ("lang", "text", "z", "min", "q")
    change_url({**{name: None for name in st.query_params if name not in kept}, "run": st.session_state["in_run"]})


os.environ.setdefault("KISEKI_API_URL", "http://127.0.0.1:8700")
_main()
