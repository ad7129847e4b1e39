"""The line below a page of results, and the way out of a part of the steps: both keep everything else of the place."""

from ui.html.escape import EMPTY, Html, joined, tag
from ui.html.places import Place
from ui.html.texts import Say

__all__ = ["all_steps_link", "first_page_link", "page_links"]


def page_links(place: Place, say: Say, next_cursor: str | None, num_shown: int) -> Html:
    """Links to the first and the next page of results. num_shown: results up to the end of this page."""
    links = []
    if place.params.get("cursor"):
        links.append(_first_page(place, say))
    if next_cursor is not None:
        links.append(place.link(place.here(cursor=next_cursor, n=num_shown), say("next page")))
    return tag("p", joined(links, " "), class_="near")


def first_page_link(place: Place, say: Say) -> Html:
    """Below a problem: a link to the first page of results, where another page was asked for."""
    return tag("p", _first_page(place, say)) if place.params.get("cursor") else EMPTY


def all_steps_link(place: Place, say: Say) -> Html:
    """Where only a part of the steps is shown: a link to all of them."""
    if not (place.params.get("first") or place.params.get("last")):
        return EMPTY
    return tag("p", place.link(place.here(first=None, last=None, cursor=None, n=None), say("Show all steps")))


def _first_page(place: Place, say: Say) -> Html:
    return place.link(place.here(cursor=None, n=None), say("first page"))
