"""Links: a page and what stands in its URL. The URL is the whole state of a page, so a link is a view.

A text to trace stands there as it is while it is short, else packed: deflated, in URL-safe base64, as `z`. A page of thousands
of links does not repeat it in each: they say `z=*`, and linked_html.js puts the page's own there before a link is used.
"""

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from train_hooks.export_format.errors import QueryError
from ui.html.escape import Html, tag

__all__ = ["PAGES", "Place", "pack", "parse_href", "unpack"]

PAGES = ("trace", "search", "sequence", "steps", "documents", "sql", "runs")
KEPT = ("run", "lang")
MAX_UNPACKED, SAME = 2_000_000, "*"


@dataclass(frozen=True, slots=True)
class Place:
    """The page that is shown, and the parameters of its URL."""

    page: str
    params: Mapping[str, str]

    def here(self, **changes: str | int | None) -> str:
        """Where the same page shows something else; None takes a parameter away."""
        packed = {"z": SAME} if "z" in self.params else {}
        return _href(self.page, {**self.params, **packed, **changes})

    def to(self, page: str, **params: str | int | None) -> str:
        """Where another page shows this, of the same run and in the same language."""
        kept = {name: self.params[name] for name in KEPT if name in self.params}
        return _href(page, {**kept, **params})

    def link(self, href: str, content: str, *, name: str = "", title: str = "") -> Html:
        """An `a` that stays inside the pages. content: a text or HTML; name: its class."""
        return tag("a", content, data_go=True, href=href, class_=name, title=title)


def _href(page: str, params: Mapping[str, str | int | None]) -> str:
    asked = urlencode({name: str(value) for name, value in params.items() if value not in (None, "")}, quote_via=quote)
    return ("./" if page == "trace" else page) + (f"?{asked}" if asked else "")


def parse_href(href: str) -> tuple[str, dict[str, str]] | None:
    """(page, parameters) of a link of `Place`; None for any other."""
    parts = urlsplit(href)
    page = parts.path.removeprefix("./") or "trace"
    if parts.scheme or parts.netloc or page not in PAGES:
        return None
    return page, dict(parse_qsl(parts.query))


def pack(document: Mapping[str, str]) -> str:
    """A small document as text for a URL."""
    squeezed = zlib.compress(json.dumps(document, ensure_ascii=False).encode("utf-8", "replace"), 9)
    return base64.urlsafe_b64encode(squeezed).decode("ascii").rstrip("=")


def unpack(packed: str) -> dict[str, str]:
    """What `pack` was given. Raises QueryError where a link was cut."""
    try:
        squeezed = base64.urlsafe_b64decode(packed + "=" * (-len(packed) % 4))
        stream = zlib.decompressobj()
        document = json.loads(stream.decompress(squeezed, MAX_UNPACKED))
        if not stream.eof:
            raise ValueError("its end is missing, or it is too long")
    except (binascii.Error, zlib.error, ValueError, RecursionError) as error:
        raise QueryError("expected a whole link, found one that was cut; copy it again, with all of its end") from error
    if not isinstance(document, dict):
        raise QueryError("expected a link of these pages, found something else in its z; copy it again")
    return {str(name): str(value) for name, value in document.items()}
