"""The search page: words, phrases, fields and token n-grams; by source, over steps, with snippets, page by page."""

from typing import Any

import streamlit as st

from search_api.client import ApiError
from ui.html.escape import Html, tag
from ui.html.messages import generation_html, message_html, problem_html
from ui.html.paging import all_steps_link, first_page_link, page_links
from ui.html.places import Place
from ui.html.search import facets_html, hits_html, query_problem_html, quoted, steps_html
from ui.html.tables import definitions_html
from ui.pages.api import client
from ui.pages.choices import choice_in_url
from ui.pages.linked_html import show_html
from ui.pages.state import View, change_url, number_in_url, set_widget, text_in_url

__all__ = ["show"]

PAGE_HITS = 10
NEW_QUESTION = ("cursor", "n")
QUERIES = 'desire AND expectation · "loss curve"~2 · diverg* · source:web -step:<1000 · ngram:"import torch" · 全文検索'
Json = dict[str, Any]


def show(view: View) -> None:
    """The page."""
    say, last_step = view.say, max(1, view.run["last_step"])
    query = _ask(view)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        source = text_in_url(view, "source", say("Only this source"), width=240, also=NEW_QUESTION)
        first = number_in_url(
            view, "first", say("From step"), default=0, low=0, high=last_step, width=170, also=NEW_QUESTION
        )
        last = number_in_url(
            view, "last", say("to step"), default=last_step, low=0, high=last_step, width=170, also=NEW_QUESTION
        )
        orders = {"relevance": say("best first"), "step": say("first step first"), "step_desc": say("last step first")}
        sort = choice_in_url(view, "sort", say("Order"), orders, also=NEW_QUESTION)
    if not query.strip():
        show_html(_help(view), key="search_empty", page="search", lang=view.lang)
        return
    if first > last:
        words = say("The range begins at step {first}, after its end, step {last}.", first=first, last=last)
        show_html(message_html(words, "error"), key="search_range", page="search", lang=view.lang)
        return
    asked: Any = {"sort": sort, "facets": True, "limit": PAGE_HITS, "first_step": first, "last_step": last}
    if source:
        asked["source"] = source
    try:
        with st.spinner(say("Searching …")):
            found = client().search(query, run=view.run_id, **asked).page(view.text("cursor") or None)
    except ApiError as error:
        show_html(_problem(view, error), key="search_problem", page="search", lang=view.lang)
        return
    _show_found(view, found, source)


def _ask(view: View) -> str:
    """The query's field."""
    say = view.say
    set_widget("in_search_q", view.text("q"))
    with st.form("search_form", border=False):
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.text_input(say("Words, phrases, fields, token n-grams"), key="in_search_q", placeholder=QUERIES)
            st.form_submit_button(say("Search"), on_click=_submit)
    return view.text("q")


def _submit() -> None:
    change_url({"q": st.session_state["in_search_q"], **dict.fromkeys(NEW_QUESTION)})


def _show_found(view: View, found: Json, source: str) -> None:
    say, place = view.say, view.place
    shown_before = view.number("n", 0, 0, 10**9)
    took = say("{n} ms, generation {g} of the index", n=f"{found['took_ms']:,.0f}", g=found["generation"])
    foot = page_links(place, say, found["next_cursor"], shown_before + len(found["hits"]))
    foot += tag("p", took, class_="dim")
    if found["snippets_cut"]:
        foot += tag("p", say("Snippets are shorter than they could be: the server limits them."), class_="dim")
    show_html(
        generation_html(say, view.number_or_none("gen"), found["generation"]),
        left=hits_html(place, say, found, shown_before) + foot,
        aside=tag("h2", say("Over steps")) + all_steps_link(place, say)
        + steps_html(_without_page(view), say, found["facets"]) + facets_html(_without_page(view), say, found, source),
        key="search", page="search", lang=view.lang,
    )  # fmt: skip


def _without_page(view: View) -> Place:
    """The place without what belongs to one page of results."""
    params = {name: value for name, value in view.place.params.items() if name not in NEW_QUESTION}
    return Place(view.place.page, params)


def _problem(view: View, error: ApiError) -> Html:
    """A query that cannot be read is shown with the place; anything else in words, with the way back to the first page."""
    if error.kind == "query" and "\n" in error.detail:
        return query_problem_html(view.say, error.detail)
    problem = problem_html(view.say, error.status, error.kind, error.detail)
    return problem + first_page_link(view.place, view.say)


def _help(view: View) -> Html:
    """What can be asked."""
    say = view.say
    lines = (
        ("loss curve", say("both words, anywhere in a segment")), ("loss OR curve", say("one of them")),
        ('"loss curve"', say("next to each other")), ("-curve", say("without the word")), ("diverg*", say("how it begins")),
        ("optimiser~1", say("one letter more, less or other")), ("source:web", say("of this source")),
        ("step:100..200", say("of these steps")), ('ngram:"the cat"', say("these tokens next to each other")),
        ("ids:[12 5 77]", say("these token ids")), (quoted("全文検索"), say("Japanese and Chinese as they are written")),
    )  # fmt: skip
    examples = [(tag("code", view.place.link(view.place.here(q=query), query)), words) for query, words in lines]
    first = message_html(say("Write a query above to find the segments that the model was trained on."))
    return first + definitions_html(examples)
