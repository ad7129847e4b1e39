"""Search as HTML: how many segments match, by source and over steps, and the segments themselves with their snippets."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ui.html.charts import Bar, bars
from ui.html.coverage import failures_html
from ui.html.escape import one_line, text_html
from ui.html.messages import message_html
from ui.html.places import Place
from ui.html.texts import Say

__all__ = ["facets_html", "hits_html", "query_problem_html", "quoted", "steps_html"]

Json = Mapping[str, Any]
LISTED_SOURCES = 20


def quoted(text: str) -> str:
    """Any text as a phrase or a value of the query language."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def steps_html(place: Place, say: Say, facets: Json) -> str:
    """Matching segments over the selected steps; dragging or a click on a bar selects less of them."""
    edges = facets["step_edges"]
    data = [
        Bar(
            first, after, count,
            say("steps {first} to {last}: {n} segments", first=f"{first:,}", last=f"{after - 1:,}", n=f"{count:,}"),
            place.here(first=first, last=after - 1, cursor=None) if after - first > 1 else "",
        )
        for first, after, count in zip(edges[:-1], edges[1:], facets["steps"], strict=True)
    ]  # fmt: skip
    label = say("Matching segments over steps {first} to {last}", first=f"{edges[0]:,}", last=f"{edges[-1] - 1:,}")
    chart = bars(data, label=label, brush=place.here(first="{first}", last="{last}", cursor=None))
    how = say("Drag over the bars, or click one, to search a part of the steps.")
    return f'{chart}<p class="dim">{text_html(how)}</p>'


def facets_html(place: Place, say: Say, answer: Json, chosen: str) -> str:
    """Matching segments by source; a link narrows the search to one, and back. Also by rank, in words."""
    facets = answer["facets"]
    parts = [f"<h3>{text_html(say('By source'))}</h3>"]
    if chosen:
        parts.append(f"<p>{place.link(place.here(source=None, cursor=None), text_html(say('All sources')))}</p>")
    rows = []
    for source in facets["sources"][:LISTED_SOURCES]:
        name = text_html(one_line(source["value"], 60) or say("no known source"))
        if source["value"] and source["value"] != chosen:
            name = place.link(place.here(source=source["value"], cursor=None), name)
        kind = ' class="on"' if source["value"] == chosen and chosen else ""
        rows.append(f'<span{kind}>{name}</span><span class="num">{source["count"]:,}</span>')
    parts.append(f'<div class="facet">{"".join(rows)}</div>')
    left = len(facets["sources"]) - LISTED_SOURCES
    if left > 0 or facets["truncated"]:
        parts.append(f"<p>{text_html(say('There are more sources; name one above.'))}</p>")
    ranks = ", ".join(f"{rank['value']}: {rank['count']:,}" for rank in facets["dp_ranks"][:LISTED_SOURCES])
    parts.append(f"<h3>{text_html(say('By data-parallel rank'))}</h3><p>{text_html(ranks or '–')}</p>")
    return "".join(parts)


def hits_html(place: Place, say: Say, answer: Json, shown_before: int) -> str:
    """The segments of a page, with links to the packed sequence and the document. shown_before: on earlier pages."""
    if not answer["hits"]:
        words = say("No segment matches in the selected steps. Try fewer or other words, or more steps and sources.")
        return failures_html(say, answer) + message_html(words)
    count = f"{answer['count']:,}"
    first, last = shown_before + 1, shown_before + len(answer["hits"])
    template = (
        say("Segments {first} to {last} of {n}", first=f"{first:,}", last=f"{last:,}", n=count)
        if answer["count_relation"] == "eq"
        else say("Segments {first} to {last} of at least {n}", first=f"{first:,}", last=f"{last:,}", n=count)
    )
    items = "".join(_hit(place, say, hit) for hit in answer["hits"])
    return failures_html(say, answer) + f'<h2 data-test="count">{text_html(template)}</h2>{items}'


def query_problem_html(say: Say, detail: str) -> str:
    """What is wrong with a query: the words, and the place in it."""
    way = say("This query cannot be read. The mark stands where it went wrong; quotation marks make any text plain.")
    return f'<div class="msg error" role="alert"><p>{text_html(way)}</p><pre>{text_html(detail)}</pre></div>'


def _hit(place: Place, say: Say, hit: Json) -> str:
    address = hit["address"]
    where = place.link(
        place.to("sequence", address=address, at=f"{hit['start']}-{hit['end']}"), f"<code>{text_html(address)}</code>"
    )
    document = say("a stretch without a known document")
    named = text_html(document)
    if hit["document_id"] or hit["source"]:
        named = place.link(
            place.to("documents", source=hit["source"], document=hit["document_id"]),
            text_html(one_line(f"{hit['source']} / {hit['document_id']}", 100)),
        )
    facts = say(
        "step {step}, rank {rank}, tokens {start} to {end}", step=f"{hit['global_step']:,}", rank=hit["dp_rank"],
        start=f"{hit['start']:,}", end=f"{hit['end']:,}",
    )  # fmt: skip
    if hit["score"] is not None:
        facts += " · " + say("score {n}", n=f"{hit['score']:.2f}")
    text = "" if hit["snippet"] is None else f'<div class="context" dir="auto">{_snippet(hit)}</div>'
    return f'<div class="hit">{named} · {where}<br><span class="dim">{text_html(facts)}</span>{text}</div>'


def _snippet(hit: Json) -> str:
    """The snippet, its matches marked. Highlights are [start, end) in the segment's text, ascending."""
    text, begin = hit["snippet"], hit["snippet_start"]
    parts, at = [], 0
    for start, end in _apart([(start - begin, end - begin) for start, end in hit["highlights"]]):
        parts += [text_html(text[at:start]), f"<mark>{text_html(text[start:end])}</mark>"]
        at = end
    before = "… " if begin > 0 else ""
    return re.sub(r"\n{3,}", "\n\n", before + "".join(parts) + text_html(text[at:]))


def _apart(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, those that overlap joined."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
