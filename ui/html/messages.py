"""Errors, warnings and empty answers in words, with the way out."""

from collections.abc import Mapping
from typing import Any

from ui.html.escape import EMPTY, Html, tag
from ui.html.texts import Say

__all__ = ["failures_html", "generation_html", "message_html", "origin_html", "problem_html"]

Json = Mapping[str, Any]
_WAYS_OUT = {
    "unauthorized": "The pages' key is not valid. Whoever runs the server sets it in KISEKI_API_KEY.",
    "forbidden": "The pages' key does not allow this. Ask whoever runs the server for a key with this action.",
    "run": "There is no such run here, or the pages' key may not see it. Choose a run at the top of the page.",
    "sequence": "No such sequence is in the index. Take an address from a trace, a search or a step.",
    "cursor": "This link goes on from a page of results that the server no longer knows. Begin with the first page.",
    "generation-expired": "This link goes on in a state of the index that is gone. Begin with the first page.",
    "deadline": "The answer took too long. Ask for less: a shorter text, fewer hits, fewer steps.",
    "busy": "The server has too much to do. Wait a moment and try again.",
    "rate": "Too many questions in a short time. Wait a moment and try again.",
    "budget": "The pages' key has used up its tokens for today.",
    "incomplete": "This is not there yet: the index is still being made. Try again in a moment.",
    "damage": "A part of the index or of the export is damaged. `kiseki export verify` says which.",
    "body-too-large": "This is too long for one question. Take a shorter text.",
    "not-found": "Nothing is here. The server may be older than these pages.",
}


def problem_html(say: Say, status: int, kind: str, detail: str) -> Html:
    """A problem of the API, or of what was put in. status 0: it does not answer."""
    if status == 0:
        way = say("The API does not answer. See whether `kiseki serve` is still running, then load the page again.")
    else:
        way = say(_WAYS_OUT[kind]) if kind in _WAYS_OUT else ""
    found = tag("pre" if "\n" in detail else "p", detail)
    return tag("div", tag("p", way) if way else EMPTY, found, class_="msg error", role="alert")


def message_html(text: str, kind: str = "") -> Html:
    """Some words in a box. kind: "", "warning" or "error"."""
    return tag("div", text, class_=f"msg {kind}".strip(), role="alert" if kind == "error" else "status")


def failures_html(say: Say, answer: Json) -> Html:
    """A warning where a part of the index did not answer."""
    if not answer["shards_failed"]:
        return EMPTY
    text = say(
        "{n} of {all} shards did not answer, so counts may be too small: {why}", n=answer["shards_failed"],
        all=answer["shards_total"], why="; ".join(answer["failures"]),
    )  # fmt: skip
    return message_html(text, "warning")


def origin_html(say: Say, run: Json) -> Html:
    """A line that says where the rows of a run come from, unless the hook observed them."""
    kind, what = run["origin"]["kind"], run["origin"]["what"]
    if kind == "recomputed":
        text = say("Recomputed from {what}, not observed: nobody saw training consume these sequences.", what=what)
    elif kind == "imported":
        text = say("Imported from {what}, not observed by the hook.", what=what)
    else:
        return EMPTY
    return tag("p", text, class_="origin")


def generation_html(say: Say, asked: int | None, now: int) -> Html:
    """A note where a link was made on another generation of the index."""
    if asked is None or asked == now:
        return EMPTY
    text = say(
        "This link was made when the index was at generation {asked}; it is at {now} now, and numbers may have changed. "
        "The views of a generation are kept for a few minutes only.",
        asked=asked,
        now=now,
    )
    return message_html(text, "warning")
