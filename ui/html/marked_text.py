"""A traced text with its spans marked. Spans overlap, so the text is cut at every edge: each piece knows all of its spans.

A piece is coloured by its rarest span and leads to it; a piece of several is underlined twice. Pieces are links, the first
piece of each span is a stop of the Tab key, and the page's script marks all pieces of a chosen span (`data-s`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from indexer.answers.marked_text import TextPiece, pieces_of
from ui.html.escape import Html, joined, tag, text_html
from ui.html.places import Place

__all__ = ["marked_text", "pieces", "shade", "span_name"]

Json = Mapping[str, Any]
MOST_SPANS_OF_A_PIECE = 12
SHADES = 3


def pieces(spans: Sequence[Json], num_characters: int) -> list[TextPiece]:
    """The whole text, cut wherever a span begins or ends; the spans over a piece are its marks, rarest first."""
    ranges = [None if span["char_start"] is None else (span["char_start"], span["char_end"]) for span in spans]
    cut = pieces_of(num_characters, ranges)
    return [replace(piece, marks=tuple(sorted(piece.marks, key=lambda index: _order(spans[index])))) for piece in cut]


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


def marked_text(place: Place, text: str, spans: Sequence[Json], describe: Mapping[int, str]) -> Html:
    """HTML of the text. describe: what is said of a span, by index, for a tooltip and a screen reader."""
    num_listed = sum(span["rarity_rank"] is not None for span in spans)
    begun: set[int] = set()
    parts = []
    hrefs = [place.here(span=span_name(span), doc=None) for span in spans]
    for piece in pieces(spans, len(text)):
        body = text[piece.start : piece.end]
        if not piece.marks:
            parts.append(text_html(body))
            continue
        new = [index for index in piece.marks if index not in begun]
        begun.update(new)
        lead = new[0] if new else piece.marks[0]
        rarest = spans[piece.marks[0]]
        listed_here = sum(spans[index]["rarity_rank"] is not None for index in piece.marks)
        names = f"m r{shade(rarest, num_listed)}" + (" over" if listed_here > 1 else "") + (" b" if new else "")
        ranks = [spans[index]["rarity_rank"] for index in new]
        numbers = joined(tag("sup", str(rank + 1)) for rank in ranks if rank is not None)
        held = " ".join(map(str, piece.marks[:MOST_SPANS_OF_A_PIECE]))
        parts.append(
            tag(
                "a", numbers, body, data_go=True, href=hrefs[lead], data_s=held, class_=names, tabindex=None if new else -1,
                title=describe.get(lead, ""),
            )
        )  # fmt: skip
    return tag("div", joined(parts), class_="text", dir="auto")
