"""A trace as HTML that stands by itself, for notebooks and pages. Corpus text is escaped everywhere."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["marked_html", "trace_html"]

# Background and text colours that keep a contrast of 7:1 in light and dark themes alike.
_SHADES = (("#f6c445", "#1a1a1a"), ("#f9dc8c", "#1a1a1a"), ("#cfe8f5", "#1a1a1a"))
_MAX_ROWS = 20

Json = Mapping[str, Any]


def marked_html(text: str, spans: Sequence[Json]) -> str:
    """The text as HTML with a mark for each span; selected ones carry their number. Everything is escaped."""
    parts: list[str] = []
    position = 0
    for span in spans:
        start, end = max(span["char_start"], position), span["char_end"]
        parts.append(html.escape(text[position:start]))
        body = html.escape(text[start:end])
        rank = span["rarity_rank"]
        if rank is None:
            parts.append(f'<span style="text-decoration:underline dotted">{body}</span>')
        else:
            background, color = _SHADES[min(len(_SHADES) - 1, rank // 2)]
            parts.append(
                f'<mark style="background:{background};color:{color};padding:1px 2px;border-radius:3px" '
                f'title="seen {span["count"]} times">{body}<sup><b>{rank + 1}</b></sup></mark>'
            )
        position = max(position, end)
    parts.append(html.escape(text[position:]))
    return f'<div style="white-space:pre-wrap;line-height:1.7;overflow-wrap:anywhere">{"".join(parts)}</div>'


def trace_html(trace: Json) -> str:
    """The text with its spans marked, and under it the selected ones with where they were seen."""
    placed = [span for span in trace["spans"] if span["char_start"] is not None]
    listed = sorted(
        (span for span in trace["spans"] if span["rarity_rank"] is not None), key=lambda s: s["rarity_rank"]
    )
    rows = "".join(_row(span) for span in listed[:_MAX_ROWS])
    head = "".join(f"<th>{name}</th>" for name in ("", "tokens", "seen", "steps", "first places", "document"))
    missing = f" · {trace['shards_failed']} shards failed" if trace["shards_failed"] else ""
    return (
        f"{marked_html(trace['text'], placed)}<table><tr>{head}</tr>{rows}</table>"
        f"<small>{trace['num_tokens_covered']} of {trace['num_tokens']} tokens in {len(trace['spans'])} spans · run "
        f"{html.escape(str(trace['run_id']))}, generation {trace['generation']}{missing}</small>"
    )


def _row(span: Json) -> str:
    first, last = span["first_step"], span["last_step"]
    hits = span["hits"][:3]
    places = "<br>".join(html.escape(f"{hit['address']} at token {hit['offset']}") for hit in hits)
    documents = sorted({f"{s['source']} / {s['document_id']}" for hit in hits for s in hit["segments"]})
    cells = (
        f"<b>{span['rarity_rank'] + 1}</b>", span["num_tokens"], span["count"],
        first if first == last else f"{first}–{last}", places, "<br>".join(map(html.escape, documents)),
    )  # fmt: skip
    return "<tr>" + "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells) + "</tr>"
