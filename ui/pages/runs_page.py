"""The runs page: the attempts of a run as a timeline, what is missing, how its index is; and the other runs there are."""

from collections.abc import Mapping
from typing import Any

from ui.html.attempts import attempts_html, gaps_html, health_html, timeline_html
from ui.html.escape import Html, joined, tag
from ui.pages.api import gaps, runs
from ui.pages.linked_html import show_html
from ui.pages.state import View

__all__ = ["show"]


def show(view: View) -> None:
    """The page."""
    say, place = view.say, view.place
    missing, attempts = gaps(view), view.run["attempts"]
    parts = [
        tag("h2", say("Run {name}", name=view.run_id)),
        health_html(say, view.run, missing),
        tag("h2", say("Attempts and rollbacks")),
        timeline_html(place, say, attempts, missing["gaps"]),
        attempts_html(say, attempts),
        tag("h2", say("Gaps")),
        gaps_html(place, say, missing),
    ]
    others = [run for run in runs() if run["run_id"] != view.run_id]
    if others:
        parts.append(tag("h2", say("Other runs here")))
        parts.append(tag("ol", *(_link_to_run(view, run) for run in others), class_="spans"))
    show_html(joined(parts), key="runs", page="runs", lang=view.lang)


def _link_to_run(view: View, run: Mapping[str, Any]) -> Html:
    link = view.place.link(view.place.here(run=run["run_id"]), run["run_id"])
    words = view.say("{n} tokens, last step {s}", n=f"{run['num_tokens']:,}", s=f"{run['last_step']:,}")
    return tag("li", link, " ", tag("span", words, class_="dim"))
