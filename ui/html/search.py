"""Search as HTML: how many segments match, by source and over steps, and the segments themselves with their snippets."""

import re
from collections.abc import Mapping
from typing import Any

from indexer.answers.marked_text import join_ranges, pieces_of
from ui.html.charts import Bar, bar_chart
from ui.html.escape import EMPTY, LINE_BREAK, Html, joined, one_line, tag, text_html
from ui.html.messages import failures_html, message_html
from ui.html.places import Place
from ui.html.texts import Say

__all__ = ["facets_html", "hits_html", "query_problem_html", "quoted", "steps_html"]

Json = Mapping[str, Any]
LISTED_SOURCES = 20


def quoted(text: str) -> str:
    """Any text as a phrase or a value of the query language."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def steps_html(place: Place, say: Say, facets: Json) -> Html:
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
    chart = bar_chart(data, label=label, brush=place.here(first="{first}", last="{last}", cursor=None))
    return chart + tag("p", say("Drag over the bars, or click one, to search a part of the steps."), class_="dim")


def facets_html(place: Place, say: Say, answer: Json, chosen: str) -> Html:
    """Matching segments by source; a link narrows the search to one, and back. Also by rank, in words."""
    facets = answer["facets"]
    parts = [tag("h3", say("By source"))]
    if chosen:
        parts.append(tag("p", place.link(place.here(source=None, cursor=None), say("All sources"))))
    rows = []
    for source in facets["sources"][:LISTED_SOURCES]:
        name = one_line(source["value"], 60) or say("no known source")
        is_chosen = bool(chosen) and source["value"] == chosen
        if source["value"] and not is_chosen:
            name = place.link(place.here(source=source["value"], cursor=None), name)
        rows.append(tag("span", name, class_="on" if is_chosen else ""))
        rows.append(tag("span", f"{source['count']:,}", class_="num"))
    parts.append(tag("div", *rows, class_="facet"))
    if len(facets["sources"]) > LISTED_SOURCES or facets["truncated"]:
        parts.append(tag("p", say("There are more sources; name one above.")))
    ranks = ", ".join(f"{rank['value']}: {rank['count']:,}" for rank in facets["dp_ranks"][:LISTED_SOURCES])
    return joined([*parts, tag("h3", say("By data-parallel rank")), tag("p", ranks or "–")])


def hits_html(place: Place, say: Say, answer: Json, shown_before: int) -> Html:
    """The segments of a page, with links to the packed sequence and the document. shown_before: on earlier pages."""
    if not answer["hits"]:
        words = say("No segment matches in the selected steps. Try fewer or other words, or more steps and sources.")
        return failures_html(say, answer) + message_html(words)
    count = f"{answer['count']:,}"
    first, last = shown_before + 1, shown_before + len(answer["hits"])
    words = (
        say("Segments {first} to {last} of {n}", first=f"{first:,}", last=f"{last:,}", n=count)
        if answer["count_relation"] == "eq"
        else say("Segments {first} to {last} of at least {n}", first=f"{first:,}", last=f"{last:,}", n=count)
    )
    items = joined(_hit(place, say, hit) for hit in answer["hits"])
    return failures_html(say, answer) + tag("h2", words, data_test="count") + items


def query_problem_html(say: Say, detail: str) -> Html:
    """What is wrong with a query: the words, and the place in it."""
    way = say("This query cannot be read. The mark stands where it went wrong; quotation marks make any text plain.")
    return tag("div", tag("p", way), tag("pre", detail), class_="msg error", role="alert")


def _hit(place: Place, say: Say, hit: Json) -> Html:
    address = hit["address"]
    where = place.link(place.to("sequence", address=address, at=f"{hit['start']}-{hit['end']}"), tag("code", address))
    document = say("a stretch without a known document")
    if hit["document_id"] or hit["source"]:
        document = place.link(
            place.to("documents", source=hit["source"], document=hit["document_id"]),
            one_line(f"{hit['source']} / {hit['document_id']}", 100),
        )
    facts = say(
        "step {step}, rank {rank}, tokens {start} to {end}", step=f"{hit['global_step']:,}", rank=hit["dp_rank"],
        start=f"{hit['start']:,}", end=f"{hit['end']:,}",
    )  # fmt: skip
    if hit["score"] is not None:
        facts += " · " + say("score {n}", n=f"{hit['score']:.2f}")
    text = EMPTY if hit["snippet"] is None else tag("div", _snippet(hit), class_="context", dir="auto")
    return tag("div", document, " · ", where, LINE_BREAK, tag("span", facts, class_="dim"), text, class_="hit")


def _snippet(hit: Json) -> Html:
    """The snippet, its matches marked. Highlights are [start, end) in the segment's text, ascending."""
    text, begin = hit["snippet"], hit["snippet_start"]
    parts = [text_html("… " if begin > 0 else "")]
    highlights = join_ranges((start - begin, end - begin) for start, end in hit["highlights"])
    for piece in pieces_of(len(text), highlights):
        body = _fewer_blank_lines(text[piece.start : piece.end])
        parts.append(tag("mark", body) if piece.marks else text_html(body))
    return joined(parts)


def _fewer_blank_lines(text: str) -> str:
    """The text with at most one blank line at a time."""
    return re.sub(r"\n{3,}", "\n\n", text.replace("\r", ""))
