"""The sequence page: one packed sequence as the model saw it."""

import streamlit as st

from ui.html.escape import text_html
from ui.html.messages import message_html
from ui.html.sequence import Shown, parse_range, replay_snippet, row_html, sequence_html
from ui.pages.api import sequence
from ui.pages.live import live
from ui.pages.state import View, change_url, put, text_in_url

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
        live(message_html(words), key="sequence_empty", page="sequence", lang=view.lang)
        return
    with st.spinner(say("Reading the sequence …")):
        found = sequence(address)
    shown = Shown(as_tokens=as_tokens, marked=parse_range(view.text("at")))
    snippet = replay_snippet(found["address"])
    live(
        row_html(view.place, say, found)
        + f'<section class="page">{sequence_html(view.place, say, found, shown)}</section>'
        + f"<h2>{text_html(say('Get its tensors back'))}</h2>"
        + f"<p>{text_html(say('RUN is the run directory; the tensors are those of the recorded forward, bit for bit.'))}</p>"
        + f'<pre class="snippet" id="snippet">{text_html(snippet)}</pre>'
        + f'<button data-copy="#snippet" data-done="{text_html(say("Copied"))}">{text_html(say("Copy the snippet"))}</button> '
        + f'<button data-copy="link" data-done="{text_html(say("Copied"))}">{text_html(say("Copy link"))}</button>',
        key="sequence", page="sequence", lang=view.lang,
    )  # fmt: skip


def _mode(view: View) -> bool:
    """Whether it is shown token by token."""
    say = view.say
    labels = {"text": say("Text"), "tokens": say("Tokens")}
    put("in_sequence_show", "tokens" if view.text("show") == "tokens" else "text")

    def write() -> None:
        change_url({"show": "tokens" if st.session_state["in_sequence_show"] == "tokens" else None})

    st.segmented_control(
        say("Show as"), list(labels), format_func=labels.__getitem__, key="in_sequence_show", on_change=write
    )
    return view.text("show") == "tokens"
