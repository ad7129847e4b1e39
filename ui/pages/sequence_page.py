"""The sequence page: one packed sequence as the model saw it."""

import streamlit as st

from ui.html.escape import tag
from ui.html.messages import message_html
from ui.html.sequence import SequenceView, parse_range, replay_snippet, sequence_facts_html, sequence_html
from ui.pages.api import sequence
from ui.pages.linked_html import show_html
from ui.pages.state import View, change_url, set_widget, text_in_url

__all__ = ["show"]


def show(view: View) -> None:
    """The page."""
    say = view.say
    with st.container(horizontal=True, vertical_alignment="bottom"):
        address = text_in_url(
            view, "address", say("Address of a sequence"), placeholder="run/a1/s120/r3/m0/q5", also=("at",)
        ).strip()
        as_tokens = _mode(view)
    if not address:
        words = say("Every packed sequence has an address. Take one from a trace, a search, a document or a step.")
        show_html(message_html(words), key="sequence_empty", page="sequence", lang=view.lang)
        return
    with st.spinner(say("Reading the sequence …")):
        found = sequence(address)
    how = SequenceView(as_tokens=as_tokens, marked=parse_range(view.text("at")))
    snippet = replay_snippet(found["address"])
    copied = say("Copied")
    show_html(
        sequence_facts_html(view.place, say, found)
        + tag("section", sequence_html(view.place, say, found, how), class_="page")
        + tag("h2", say("Get its tensors back"))
        + tag("p", say("RUN is the run directory; the tensors are those of the recorded forward, bit for bit."))
        + tag("pre", snippet, class_="snippet", id="snippet")
        + tag("button", say("Copy the snippet"), data_copy="#snippet", data_done=copied)
        + " "
        + tag("button", say("Copy link"), data_copy="link", data_done=copied),
        key="sequence", page="sequence", lang=view.lang,
    )  # fmt: skip


def _mode(view: View) -> bool:
    """Whether it is shown token by token."""
    say = view.say
    labels = {"text": say("Text"), "tokens": say("Tokens")}
    set_widget("in_sequence_show", "tokens" if view.text("show") == "tokens" else "text")

    def write() -> None:
        change_url({"show": "tokens" if st.session_state["in_sequence_show"] == "tokens" else None})

    st.segmented_control(
        say("Show as"), list(labels), format_func=labels.__getitem__, key="in_sequence_show", on_change=write
    )
    return view.text("show") == "tokens"
