"""The line below a page of results, and the way out of a part of the steps: both keep everything else of the place."""

from ui.html.escape import text_html
from ui.html.places import Place
from ui.html.texts import Say

__all__ = ["all_steps_link", "page_links"]


def page_links(place: Place, say: Say, next_cursor: str | None, num_shown: int) -> str:
    """Links to the first and the next page of results. num_shown: results up to the end of this page."""
    links = []
    if place.params.get("cursor"):
        links.append(place.link(place.here(cursor=None, n=None), text_html(say("first page"))))
    if next_cursor is not None:
        links.append(place.link(place.here(cursor=next_cursor, n=num_shown), text_html(say("next page"))))
    return f'<p class="near">{" ".join(links)}</p>'


def all_steps_link(place: Place, say: Say) -> str:
    """Where only a part of the steps is shown: a link to all of them."""
    if not (place.params.get("first") or place.params.get("last")):
        return ""
    return (
        f"<p>{place.link(place.here(first=None, last=None, cursor=None, n=None), text_html(say('Show all steps')))}</p>"
    )
