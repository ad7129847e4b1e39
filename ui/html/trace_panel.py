"""What is shown beside a traced text: its rarest spans, its documents, or one span with all that is known of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ui.html.charts import Bar, bar_chart
from ui.html.escape import EMPTY, LINE_BREAK, Html, joined, one_line, tag
from ui.html.marked_text import shade, span_name
from ui.html.places import Place
from ui.html.tables import definitions_html
from ui.html.texts import Say

__all__ = ["describe_spans", "documents_html", "exposures_chart", "span_html", "spans_html", "steps_text", "times_text"]

Json = Mapping[str, Any]
SPANS_SHOWN, DOCUMENTS_SHOWN, QUOTE = 60, 60, 90
SEARCHABLE_TOKENS = 256


def times_text(say: Say, count: int, relation: str = "eq") -> str:
    """How often, in words."""
    if relation == "gte":
        return say("at least {n} times", n=f"{count:,}")
    return say("once") if count == 1 else say("{n} times", n=f"{count:,}")


def steps_text(say: Say, first: int, last: int) -> str:
    """A step, or the first and the last one."""
    return say("step {n}", n=f"{first:,}") if first == last else say("steps {a}–{b}", a=f"{first:,}", b=f"{last:,}")


def describe_spans(say: Say, spans: Sequence[Json]) -> dict[int, str]:
    """A line on each span, for tooltips and screen readers."""
    return {
        index: say(
            "{tokens} tokens, seen {times}, {steps}",
            tokens=span["num_tokens"], times=times_text(say, span["count"], span["count_relation"]),
            steps=steps_text(say, span["first_step"], span["last_step"]),
        )
        for index, span in enumerate(spans)
    }  # fmt: skip


def tabs_html(place: Place, say: Say, shown: str, num_spans: int, num_documents: int) -> Html:
    """The two lists, of spans and of documents: the name of the one that is shown, and a link to the other."""
    labels = {
        "spans": say("Rarest spans ({n})", n=num_spans),
        "documents": say("Documents ({n})", n=num_documents),
    }
    links = []
    for name, label in labels.items():
        href = place.here(panel=None if name == "spans" else name, span=None, doc=None)
        is_shown = name == shown
        links.append(tag("span", label, class_="on", aria_current="true") if is_shown else place.link(href, label))
    return tag("nav", *links, class_="tabs")


def spans_html(place: Place, say: Say, found: Json) -> Html:
    """The listed spans, the rarest first; a click shows one."""
    listed = _listed(found["spans"])
    describe = describe_spans(say, found["spans"])
    items = []
    for index, span in listed[:SPANS_SHOWN]:
        number, about = tag("b", str(span["rarity_rank"] + 1)), tag("span", describe[index], class_="dim")
        label = number + f" {one_line(span['text'], QUOTE)}" + LINE_BREAK + about
        items.append(tag("li", place.link(place.here(span=span_name(span), doc=None), label)))
    others = len(found["spans"]) - len(listed)
    more = len(listed) - SPANS_SHOWN
    notes = []
    if more > 0:
        notes.append(say("and {n} more, numbered in the text", n=more))
    if others:
        notes.append(say("{n} more common spans are underlined with dots; they open as well", n=f"{others:,}"))
    return tag("ol", *items, class_="spans") + joined(tag("p", note, class_="dim") for note in notes)


def documents_html(place: Place, say: Say, found: Json) -> Html:
    """Documents behind the listed spans, and which spans each has."""
    chosen = place.params.get("doc", "")
    rows = []
    for index, document in enumerate(found["documents"][:DOCUMENTS_SHOWN]):
        numbers = joined((_number_link(place, found["spans"][span], span) for span in document["spans"][:12]), ", ")
        is_chosen = chosen == str(index)
        mark = place.link(
            place.here(doc=None if is_chosen else index, panel="documents", span=None),
            say("unmark") if is_chosen else say("mark in the text"),
        )
        about = tag(
            "span", say("{n} tokens in spans", n=document["num_tokens"]), " ", numbers, " · ", mark, class_="dim"
        )
        opened = _document_link(place, document)
        rows.append(tag("li", opened, LINE_BREAK, about, class_="on" if is_chosen else ""))
    if not rows:
        return tag("p", say("The documents of these spans are not known to the export."))
    more = len(found["documents"]) - DOCUMENTS_SHOWN
    note = tag("p", say("and {n} more in the JSON", n=more), class_="dim") if more > 0 else EMPTY
    return tag("ol", *rows, class_="spans") + note


def span_html(
    place: Place, say: Say, found: Json, index: int, *, whole: Json, seen: Json, checkpoint: int, last_step: int
) -> Html:
    """One span: how often and when, and its places. whole, seen: the span alone, in the run and up to the checkpoint."""
    span = found["spans"][index]
    total, hits = (answer["spans"][0] if answer["spans"] else None for answer in (whole, seen))
    count = times_text(say, span["count"], span["count_relation"])
    if total is not None and checkpoint < last_step:
        count = say(
            "{n} before checkpoint {step}, {all} in the whole run", n=count, step=f"{checkpoint:,}",
            all=times_text(say, total["count"], total["count_relation"]),
        )  # fmt: skip
    facts: list[tuple[str, str]] = [
        (say("seen"), tag("span", count, data_test="seen")),
        (say("steps"), steps_text(say, span["first_step"], span["last_step"])),
        (say("length"), say("{n} tokens", n=span["num_tokens"])),
    ]
    ranks = span["dp_ranks"] if span["dp_ranks"] is not None else (hits or {}).get("dp_ranks")
    if ranks:
        shown = ", ".join(map(str, ranks[:16])) + (" …" if len(ranks) > 16 else "")
        facts.append((say("data-parallel ranks"), shown))
    parts = [
        _span_head(place, say, found["spans"], index),
        tag("div", span["text"], class_="quote", dir="auto", tabindex=0),
        definitions_html(facts),
    ]
    if total is not None:
        parts.append(tag("h3", say("Exposures over steps")))
        parts.append(exposures_chart(place, say, total["exposures"], whole["step_edges"], checkpoint, last_step))
    parts.append(_cut_notes(place, say, found, index))
    parts.append(tag("h3", say("Where it was trained on")))
    shown_hits = hits["hits"] if hits is not None else span["hits"]
    parts.extend(hit_html(place, say, hit, span["text"], span["num_tokens"]) for hit in shown_hits)
    left = span["count"] - len(shown_hits)
    if left > 0:
        parts.append(tag("p", _rest_of_hits(place, say("and {n} more", n=f"{left:,}"), span["token_ids"])))
    return joined(parts)


def hit_html(place: Place, say: Say, hit: Json, text: str, num_tokens: int) -> Html:
    """One place of a span, in its context, with the ways to its sequence, step and documents."""
    sequence = place.link(
        place.to("sequence", address=hit["address"], at=f"{hit['offset']}-{hit['offset'] + num_tokens}"),
        tag("span", hit["address"], class_="mono"),
        name="to-sequence",
    )
    step = place.link(place.to("steps", step=hit["global_step"]), say("step {n}", n=f"{hit['global_step']:,}"))
    known = [segment for segment in hit["segments"] if segment["document_id"]]
    documents = joined((_document_link(place, segment) for segment in known), " + ") or say("document unknown")
    return tag(
        "div", step, " · ", say("rank {n}", n=hit["dp_rank"]), " · ", documents, LINE_BREAK,
        tag("span", sequence, " ", say("from token {n}", n=hit["offset"]), class_="dim"),
        tag(
            "div", hit["context_before"], tag("mark", one_line(text, 400) if len(text) > 400 else text),
            hit["context_after"], class_="context", dir="auto",
        ),
        class_="hit",
    )  # fmt: skip


def exposures_chart(
    place: Place, say: Say, exposures: Sequence[int], edges: Sequence[int], checkpoint: int, last_step: int
) -> Html:
    """Exposures by bin of steps; what comes after the checkpoint is pale. A bar leads to the first step of its bin."""
    data = []
    for first, after, count in zip(edges, edges[1:], exposures, strict=False):
        label = f"{steps_text(say, first, after - 1)}: {say('seen {times}', times=times_text(say, count))}"
        data.append(Bar(first, after, count, label, place.to("steps", step=first), dim=first > checkpoint))
    label = say("Exposures over steps; the line stands after model checkpoint {n}", n=f"{checkpoint:,}")
    if checkpoint >= last_step:
        return bar_chart(data, label=label)
    return bar_chart(data, label=label, checkpoint=checkpoint) + tag("p", label, class_="dim")


def _listed(spans: Sequence[Json]) -> list[tuple[int, Json]]:
    listed = [(index, span) for index, span in enumerate(spans) if span["rarity_rank"] is not None]
    return sorted(listed, key=lambda item: item[1]["rarity_rank"])


def _document_link(place: Place, document: Json) -> Html:
    href = place.to("documents", source=document["source"], document=document["document_id"])
    return place.link(href, f"{document['source']} / {document['document_id']}")


def _number_link(place: Place, span: Json, index: int) -> Html:
    label = f"[{span['rarity_rank'] + 1}]" if span["rarity_rank"] is not None else f"({index})"
    return place.link(place.here(span=span_name(span), doc=None), label)


def _rest_of_hits(place: Place, words: str, token_ids: Sequence[int]) -> str:
    """The words, as a link to a search for the tokens where they are few enough for one."""
    if len(token_ids) > SEARCHABLE_TOKENS:
        return words
    return place.link(place.to("search", q=f"ids:[{' '.join(map(str, token_ids))}]"), words)


def _span_head(place: Place, say: Say, spans: Sequence[Json], index: int) -> Html:
    """The span's title, and links to the ones before and after it in the text."""
    span = spans[index]
    num_listed = sum(other["rarity_rank"] is not None for other in spans)
    rank = span["rarity_rank"]
    title = say("Span {n} of {all}", n=rank + 1, all=num_listed) if rank is not None else say("A common span")
    links = [place.link(place.here(span=None), say("all spans"))]
    if index > 0:
        links.append(place.link(place.here(span=span_name(spans[index - 1])), say("◂ before")))
    if index + 1 < len(spans):
        links.append(place.link(place.here(span=span_name(spans[index + 1])), say("next ▸")))
    colour = tag("span", tag("span", " ", class_=f"m r{shade(span, num_listed)}"), class_="legend swatch")
    return tag("nav", joined(links, " "), class_="tabs") + tag("h2", colour, " ", title)


def _cut_notes(place: Place, say: Say, found: Json, index: int) -> Html:
    """Notes where the cut between two packed sequences goes through a passage."""
    notes = []
    for passage in found["joined"]:
        if index in (passage["first"], passage["second"]):
            other = passage["second"] if index == passage["first"] else passage["first"]
            text = say(
                "The cut between two packed sequences goes through this passage of {document}: it goes on in another span.",
                document=f"{passage['source']} / {passage['document_id']}",
            )
            href = place.here(span=span_name(found["spans"][other]))
            notes.append(tag("p", place.link(href, text, title=text), class_="dim"))
    return joined(notes[:3])
