"""A trace as HTML that stands by itself, for notebooks and pages. Corpus text is escaped everywhere.

HTML has the type `Markup`, and a `str` that is put into it is escaped: a plain text where HTML is expected is a type error.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

__all__ = ["marked_html", "trace_html"]

# Background and text colours that keep a contrast of 7:1 in light and dark themes alike.
_SHADES = (("#f6c445", "#1a1a1a"), ("#f9dc8c", "#1a1a1a"), ("#cfe8f5", "#1a1a1a"))
_MAX_ROWS = 20

Json = Mapping[str, Any]


_UNLISTED = Markup('<span style="text-decoration:underline dotted">{}</span>')
_LISTED = Markup(
    '<mark style="background:{};color:{};padding:1px 2px;border-radius:3px" title="seen {} times">{}<sup><b>{}</b></sup></mark>'
)
_TEXT = Markup('<div style="white-space:pre-wrap;line-height:1.7;overflow-wrap:anywhere">{}</div>')
_HEAD_CELL, _CELL, _ROW = Markup("<th>{}</th>"), Markup('<td style="text-align:left">{}</td>'), Markup("<tr>{}</tr>")
_BOLD, _LINE_BREAK, _TABLE = Markup("<b>{}</b>"), Markup("<br>"), Markup("<table>{}{}</table>")
_FOOT = Markup("<small>{} of {} tokens in {} spans · run {}, generation {}{}</small>")


def marked_html(text: str, spans: Sequence[Json]) -> Markup:
    """The text as HTML with a mark for each span; selected ones carry their number. Everything is escaped."""
    parts: list[Markup] = []
    position = 0
    for span in spans:
        start, end = max(span["char_start"], position), span["char_end"]
        parts.append(escape(text[position:start]))
        rank = span["rarity_rank"]
        if rank is None:
            parts.append(_UNLISTED.format(text[start:end]))
        else:
            background, color = _SHADES[min(len(_SHADES) - 1, rank // 2)]
            parts.append(_LISTED.format(background, color, span["count"], text[start:end], rank + 1))
        position = max(position, end)
    parts.append(escape(text[position:]))
    return _TEXT.format(Markup().join(parts))


def trace_html(trace: Json) -> Markup:
    """The text with its spans marked, and under it the selected ones with where they were seen."""
    placed = [span for span in trace["spans"] if span["char_start"] is not None]
    listed = sorted(
        (span for span in trace["spans"] if span["rarity_rank"] is not None), key=lambda s: s["rarity_rank"]
    )
    rows = Markup().join(_row(span) for span in listed[:_MAX_ROWS])
    names = ("", "tokens", "seen", "steps", "first places", "document")
    head = _ROW.format(Markup().join(map(_HEAD_CELL.format, names)))
    missing = f" · {trace['shards_failed']} shards failed" if trace["shards_failed"] else ""
    foot = _FOOT.format(
        trace["num_tokens_covered"], trace["num_tokens"], len(trace["spans"]), str(trace["run_id"]), trace["generation"],
        missing,
    )  # fmt: skip
    return marked_html(trace["text"], placed) + _TABLE.format(head, rows) + foot


def _row(span: Json) -> Markup:
    first, last = span["first_step"], span["last_step"]
    hits = span["hits"][:3]
    places = [f"{hit['address']} at token {hit['offset']}" for hit in hits]
    documents = sorted({f"{s['source']} / {s['document_id']}" for hit in hits for s in hit["segments"]})
    cells = (
        _BOLD.format(span["rarity_rank"] + 1), span["num_tokens"], span["count"],
        first if first == last else f"{first}–{last}", _LINE_BREAK.join(places), _LINE_BREAK.join(documents),
    )  # fmt: skip
    return _ROW.format(Markup().join(map(_CELL.format, cells)))
