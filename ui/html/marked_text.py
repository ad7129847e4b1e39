"""A traced text with its spans marked. Spans overlap, so the text is cut at every edge: each piece knows all of its spans.

A piece is coloured by its rarest span and leads to it; a piece of several is underlined twice. Pieces are links, the first
piece of each span is a stop of the Tab key, and the page's script marks all pieces of a chosen span (`data-s`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ui.html.escape import attribute, text_html
from ui.html.places import Place

__all__ = ["Piece", "marked_text", "pieces", "shade", "span_name"]

Json = Mapping[str, Any]
MOST_SPANS_OF_A_PIECE = 12
SHADES = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters [start, end) of the text and the spans over them, by index, rarest first."""

    start: int
    end: int
    spans: tuple[int, ...]


def pieces(spans: Sequence[Json], num_characters: int) -> list[Piece]:
    """The whole text, cut wherever a span begins or ends."""
    placed = [(place, span) for place, span in enumerate(spans) if span["char_start"] is not None]
    order = {place: _order(span) for place, span in placed}
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for place, span in placed:
        if span["char_start"] < span["char_end"]:
            begins.setdefault(span["char_start"], []).append(place)
            ends.setdefault(span["char_end"], []).append(place)
    edges = sorted({0, num_characters, *begins, *ends})
    active: set[int] = set()
    cut = []
    for start, end in pairwise(edges):
        active.difference_update(ends.get(start, ()))
        active.update(begins.get(start, ()))
        cut.append(Piece(start, end, tuple(sorted(active, key=order.__getitem__))))
    return cut


def _order(span: Json) -> tuple[int, float]:
    rank = span["rarity_rank"]
    return (rank if rank is not None else 1 << 30), float(span["log_probability"])


def shade(span: Json, num_listed: int) -> int:
    """0 for the rarest third of the listed spans, then 1 and 2; 3 for a span that is not listed."""
    rank = span["rarity_rank"]
    return SHADES if rank is None else min(SHADES - 1, SHADES * int(rank) // max(1, num_listed))


def span_name(span: Json) -> str:
    """How a URL names a span: its tokens of the text."""
    return f"{span['start']}-{span['end']}"


def marked_text(place: Place, text: str, spans: Sequence[Json], describe: Mapping[int, str]) -> str:
    """HTML of the text. describe: what is said of a span, by index, for a tooltip and a screen reader."""
    num_listed = sum(span["rarity_rank"] is not None for span in spans)
    begun: set[int] = set()
    parts = []
    hrefs = {index: attribute(place.here(span=span_name(span), doc=None)) for index, span in enumerate(spans)}
    for piece in pieces(spans, len(text)):
        body = text_html(text[piece.start : piece.end])
        if not piece.spans:
            parts.append(body)
            continue
        new = [index for index in piece.spans if index not in begun]
        begun.update(new)
        parts.append(_piece(spans, piece, new, body, num_listed, hrefs, describe))
    return f'<div class="text" dir="auto">{"".join(parts)}</div>'


def _piece(
    spans: Sequence[Json], piece: Piece, new: Sequence[int], body: str, num_listed: int, hrefs: Mapping[int, str],
    describe: Mapping[int, str],
) -> str:  # fmt: skip
    lead = new[0] if new else piece.spans[0]
    rarest = spans[piece.spans[0]]
    listed_here = sum(spans[index]["rarity_rank"] is not None for index in piece.spans)
    names = f"m r{shade(rarest, num_listed)}" + (" over" if listed_here > 1 else "") + (" b" if new else "")
    numbers = "".join(
        f"<sup>{spans[index]['rarity_rank'] + 1}</sup>" for index in new if spans[index]["rarity_rank"] is not None
    )
    held = " ".join(map(str, piece.spans[:MOST_SPANS_OF_A_PIECE]))
    stop = "" if new else ' tabindex="-1"'
    title = attribute(describe.get(lead, ""))
    return f'<a data-go href="{hrefs[lead]}" data-s="{held}" class="{names}"{stop} title="{title}">{numbers}{body}</a>'
