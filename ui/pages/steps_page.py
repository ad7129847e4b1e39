"""The steps page: metrics with their spikes, the sources over steps, what is special about a step, two windows compared."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import streamlit as st

from search_api.client import ApiError
from ui.html.escape import EMPTY, Html, joined, tag
from ui.html.explanation import explanation_html
from ui.html.messages import message_html, problem_html
from ui.html.search import quoted
from ui.html.steps import SourceMix, Window, charts_html, mix_html, parse_window, spikes_html, windows_html
from ui.pages.api import client
from ui.pages.choices import choice_in_url
from ui.pages.linked_html import show_html
from ui.pages.state import View, number_in_url, text_in_url

__all__ = ["show"]

POINTS, WINDOW_STEPS = 3000, 10_000
MIXED_SOURCES = 6
KEPT_S, KEPT_ANSWERS = 600, 12
EVERYTHING = "step:>=0"
Json = dict[str, Any]


def show(view: View) -> None:
    """The page."""
    say, last_step = view.say, max(1, view.run["last_step"])
    with st.container(horizontal=True, vertical_alignment="bottom"):
        first = number_in_url(view, "first", say("From step"), default=0, low=0, high=last_step, width=170)
        last = number_in_url(view, "last", say("to step"), default=last_step, low=0, high=last_step, width=170)
        attempt = _attempt(view)
    if first > last:
        words = say("The range begins at step {first}, after its end, step {last}.", first=first, last=last)
        show_html(message_html(words, "error"), key="steps_range", page="steps", lang=view.lang)
        return
    asked = {"first_step": first, **({"last_step": last} if last < last_step else {})}
    with st.spinner(say("Reading the steps …")):
        found = _steps(view.run_id, view.run["generation"], **asked, **_of_attempt(attempt))
    if not found["steps"]:
        words = say("There is no step from {first} to {last}. Choose a wider range.", first=first, last=last)
        show_html(message_html(words), key="steps_none", page="steps", lang=view.lang)
        return
    chosen = view.number_or_none("step")
    links = EMPTY if (first, last) == (0, last_step) else _range_links(view, first, last)
    show_html(
        EMPTY, left=links + charts_html(view.place, say, found, chosen), aside=_aside(view, found, chosen), key="steps",
        page="steps", lang=view.lang,
    )  # fmt: skip
    with _problem_here(view, "steps_mix"), st.spinner(say("Counting the sources …")):
        show_html(
            mix_html(view.place, say, _mix(view, first, last, attempt), last),
            key="steps_sources",
            page="steps",
            lang=view.lang,
        )
    _compare(view, attempt)


def _range_links(view: View, first: int, last: int) -> Html:
    """Where only a part of the steps is shown: the way out of it, and to comparing it."""
    say, here = view.say, view.place.here
    windows = [
        view.place.link(here(**{name: f"{first}-{last}"}), words)
        for name, words in (("a", say("Take this range as window A")), ("b", say("Take this range as window B")))
    ]
    whole = view.place.link(here(first=None, last=None), say("Show all steps"))
    return tag("p", whole) + tag("p", joined(windows, " · "))


def _attempt(view: View) -> int | None:
    """The attempt that is looked at; None for the canonical lineage."""
    attempts = [attempt["attempt"] for attempt in view.run["attempts"]]
    if len(attempts) < 2:
        return None
    labels = {"": view.say("canonical lineage")} | {str(n): view.say("attempt {n}", n=n) for n in attempts}
    chosen = choice_in_url(view, "attempt", view.say("Steps of"), labels, also=("step", "attempt_of"))
    return int(chosen) if chosen else None


@st.cache_data(ttl=KEPT_S, max_entries=KEPT_ANSWERS, show_spinner=False)
def _steps(run_id: str, generation: int, **asked: Any) -> Json:  # noqa: ARG001
    """Steps to draw. They hold metrics alone, nothing that is ever taken down, and stay while the generation does."""
    return dict(client().steps(run=run_id, max_points=POINTS, **asked).page())


def _of_attempt(attempt: int | None) -> Any:
    return {} if attempt is None else {"attempt": attempt}


def _aside(view: View, found: Json, chosen: int | None) -> Html:
    """What is special about the chosen step, or the spikes."""
    if chosen is None:
        return spikes_html(view.place, view.say, found)
    attempt = view.number_or_none("attempt_of")
    try:
        with st.spinner(view.say("Comparing the step with those before it …")):
            explained = client().explain(
                chosen, run=view.run_id, **_of_attempt(attempt or view.number_or_none("attempt"))
            )
    except ApiError as error:
        close = view.place.link(view.place.here(step=None, attempt_of=None), view.say("close"))
        return tag("p", close) + problem_html(view.say, error.status, error.kind, error.detail)
    return explanation_html(view.place, view.say, explained)


def _mix(view: View, first: int, last: int, attempt: int | None) -> SourceMix:
    """Segments of the most common sources over the steps."""
    whole = _facets(view, EVERYTHING, first, last, attempt)
    names = [source["value"] for source in whole["sources"] if source["value"]][:MIXED_SOURCES]
    counts = {name: _facets(view, f"source:{quoted(name)}", first, last, attempt)["steps"] for name in names}
    rest = [total - sum(each[bin_] for each in counts.values()) for bin_, total in enumerate(whole["steps"])]
    return SourceMix(edges=whole["step_edges"], counts={**counts, **({"": rest} if any(rest) else {})})


def _facets(view: View, query: str, first: int, last: int, attempt: int | None) -> Json:
    selection: Any = {"first_step": first, "last_step": last, **_of_attempt(attempt)}
    return dict(client().search(query, run=view.run_id, limit=0, facets=True, **selection).page()["facets"])


def _compare(view: View, attempt: int | None) -> None:
    """Two windows side by side."""
    say = view.say
    show_html(tag("h2", say("Compare two windows")), key="steps_compare", page="steps", lang=view.lang)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        texts = [
            text_in_url(view, name, label, placeholder="100-200", width=220)
            for name, label in (("a", say("Window A, steps")), ("b", say("Window B, steps")))
        ]
    windows = [parse_window(text) for text in texts]
    bad = next((text for text, window in zip(texts, windows, strict=True) if text and window is None), None)
    if bad is not None:
        words = say("Expected steps such as 100-200, found {text}.", text=bad)
        show_html(message_html(words, "error"), key="steps_window", page="steps", lang=view.lang)
    elif any(window is None for window in windows):
        words = say("Write the steps of two windows, or drag over a chart and take the range.")
        show_html(message_html(words), key="steps_no_window", page="steps", lang=view.lang)
    else:
        with _problem_here(view, "steps_windows"), st.spinner(say("Comparing …")):
            both = [_window(view, first, last, attempt) for first, last in filter(None, windows)]
            show_html(_side_by_side(view, both), key="steps_both", page="steps", lang=view.lang)


def _window(view: View, first: int, last: int, attempt: int | None) -> Window | None:
    """A window; None where it has more steps than are compared."""
    asked: Any = {
        "run": view.run_id,
        "first_step": first,
        "last_step": last,
        "max_points": WINDOW_STEPS,
        **_of_attempt(attempt),
    }
    found = client().steps(**asked).page()
    if found["truncated"]:
        return None
    sources = _facets(view, EVERYTHING, first, last, attempt)["sources"]
    counts = {source["value"]: source["count"] for source in sources}
    return Window(first=first, last=last, steps=found["steps"], sources=counts)


def _side_by_side(view: View, both: list[Window | None]) -> Html:
    left, right = both
    if left is None or right is None:
        return message_html(
            view.say("A window of more than {n} steps is not compared; take less.", n=f"{WINDOW_STEPS:,}"), "error"
        )
    return windows_html(view.say, left, right)


@contextmanager
def _problem_here(view: View, key: str) -> Iterator[None]:
    """Show a problem of what stands inside in its place; the rest of the page goes on."""
    try:
        yield
    except ApiError as error:
        show_html(problem_html(view.say, error.status, error.kind, error.detail), key=key, page="steps", lang=view.lang)
