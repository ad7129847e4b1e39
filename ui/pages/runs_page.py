"""The runs page: the attempts of a run as a timeline, what is missing, how its index is; and the other runs there are."""

from ui.html.attempts import attempts_html, gaps_html, health_html, timeline_html
from ui.html.escape import text_html
from ui.pages.api import gaps, runs
from ui.pages.live import live
from ui.pages.state import View

__all__ = ["show"]


def show(view: View) -> None:
    """The page."""
    say, place = view.say, view.place
    missing, attempts = gaps(view), view.run["attempts"]
    parts = [
        f"<h2>{text_html(say('Run {name}', name=view.run_id))}</h2>",
        health_html(say, view.run, missing),
        f"<h2>{text_html(say('Attempts and rollbacks'))}</h2>",
        timeline_html(place, say, attempts, missing["gaps"]),
        attempts_html(say, attempts),
        f"<h2>{text_html(say('Gaps'))}</h2>",
        gaps_html(place, say, missing),
    ]
    others = [run for run in runs() if run["run_id"] != view.run_id]
    if others:
        links = "".join(
            f"<li>{place.link(place.here(run=run['run_id']), text_html(run['run_id']))} "
            f'<span class="dim">{text_html(say("{n} tokens, last step {s}", n=_n(run["num_tokens"]), s=_n(run["last_step"])))}'
            "</span></li>"
            for run in others
        )
        parts.append(f'<h2>{text_html(say("Other runs here"))}</h2><ol class="spans">{links}</ol>')
    live("".join(parts), key="runs", page="runs", lang=view.lang)


def _n(number: int) -> str:
    return f"{number:,}"
