"""The documents page: what training saw of a document, when, and how often."""

from typing import Any

import streamlit as st

from search_api.client import ApiError
from ui.html.documents import document_html, exposures_html
from ui.html.escape import Html
from ui.html.messages import message_html, problem_html
from ui.html.paging import all_steps_link, first_page_link, page_links
from ui.pages.api import client
from ui.pages.linked_html import show_html
from ui.pages.state import View, number_in_url, text_in_url

__all__ = ["show"]

PAGE_EXPOSURES, CHARTED = 20, 1000
NEW_QUESTION = ("cursor", "n")
Json = dict[str, Any]


def show(view: View) -> None:
    """The page."""
    say, last_step = view.say, max(1, view.run["last_step"])
    with st.container(horizontal=True, vertical_alignment="bottom"):
        source = text_in_url(view, "source", say("Source"), width=240, also=NEW_QUESTION)
        document_id = text_in_url(view, "document", say("Document id"), also=NEW_QUESTION)
        first = number_in_url(
            view, "first", say("From step"), default=0, low=0, high=last_step, width=150, also=NEW_QUESTION
        )
        last = number_in_url(
            view, "last", say("to step"), default=last_step, low=0, high=last_step, width=150, also=NEW_QUESTION
        )
    if not source and not document_id:
        words = say("Name a document by its source and id, or come here from a trace, a search, a sequence or a step.")
        show_html(message_html(words), key="documents_empty", page="documents", lang=view.lang)
        return
    if first > last:
        words = say("The range begins at step {first}, after its end, step {last}.", first=first, last=last)
        show_html(message_html(words, "error"), key="documents_range", page="documents", lang=view.lang)
        return
    steps: Any = {"first_step": first, "last_step": last}
    try:
        with st.spinner(say("Looking for the document …")):
            document = client().document(source, document_id, run=view.run_id, limit=PAGE_EXPOSURES, **steps)
            page = document.page(view.text("cursor") or None)
            chart = (
                client().document(source, document_id, run=view.run_id, limit=CHARTED, with_text=False, **steps).page()
            )
    except ApiError as error:
        show_html(_problem(view, error), key="documents_problem", page="documents", lang=view.lang)
        return
    _show_found(view, page, [exposure["global_step"] for exposure in chart["exposures"]])


def _show_found(view: View, found: Json, steps: list[int]) -> None:
    say, place = view.say, view.place
    shown_before = view.number("n", 0, 0, 10**9)
    show_html(
        all_steps_link(place, say),
        left=exposures_html(place, say, found, shown_before)
        + page_links(place, say, found["next_cursor"], shown_before + len(found["exposures"])),
        aside=document_html(place, say, found, steps, max(1, view.run["last_step"])),
        key="documents", page="documents", lang=view.lang,
    )  # fmt: skip


def _problem(view: View, error: ApiError) -> Html:
    """A document that is not there is said with its near names, which the detail has."""
    say = view.say
    if error.kind == "document":
        words = say("No exposure of such a document is in the selected steps.")
        return message_html(f"{words}\n{error.detail}", "error")
    return problem_html(say, error.status, error.kind, error.detail) + first_page_link(view.place, say)
