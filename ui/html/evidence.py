"""What stands beside a traced text: its rarest spans, its documents, or one span with all that is known of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from ui.html.charts import Bar, bars
from ui.html.escape import attribute, one_line, text_html
from ui.html.marked_text import shade, span_name
from ui.html.places import Place
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


def tabs_html(place: Place, say: Say, shown: str, num_spans: int, num_documents: int) -> str:
    """Where one gets from one to the other."""
    spans = say("Rarest spans ({n})", n=num_spans)
    documents = say("Documents ({n})", n=num_documents)
    links = []
    for name, label in (("spans", spans), ("documents", documents)):
        href = place.here(panel=None if name == "spans" else name, span=None, doc=None)
        links.append(
            f'<span class="on" aria-current="true">{text_html(label)}</span>'
            if name == shown
            else place.link(href, text_html(label))
        )
    return f'<nav class="tabs">{"".join(links)}</nav>'


def spans_html(place: Place, say: Say, found: Json) -> str:
    """The listed spans, the rarest first; a click shows one."""
    listed = _listed(found["spans"])
    describe = describe_spans(say, found["spans"])
    items = []
    for index, span in listed[:SPANS_SHOWN]:
        label = (
            f"<b>{span['rarity_rank'] + 1}</b> {text_html(one_line(span['text'], QUOTE))}"
            f'<br><span class="dim">{text_html(describe[index])}</span>'
        )
        items.append(f"<li>{place.link(place.here(span=span_name(span), doc=None), label)}</li>")
    others = len(found["spans"]) - len(listed)
    more = len(listed) - SPANS_SHOWN
    notes = []
    if more > 0:
        notes.append(say("and {n} more, numbered in the text", n=more))
    if others:
        notes.append(say("{n} more common spans are underlined with dots; they open as well", n=f"{others:,}"))
    return f'<ol class="spans">{"".join(items)}</ol>' + "".join(f'<p class="dim">{text_html(n)}</p>' for n in notes)


def documents_html(place: Place, say: Say, found: Json) -> str:
    """Documents behind the listed spans, and which spans each has."""
    chosen = place.params.get("doc", "")
    rows = []
    for index, document in enumerate(found["documents"][:DOCUMENTS_SHOWN]):
        name = f"{document['source']} / {document['document_id']}"
        numbers = ", ".join(_number_link(place, found["spans"][span], span) for span in document["spans"][:12])
        is_chosen = chosen == str(index)
        mark = place.link(
            place.here(doc=None if is_chosen else index, panel="documents", span=None),
            text_html(say("unmark") if is_chosen else say("mark in the text")),
        )
        opened = place.link(
            place.to("documents", source=document["source"], document=document["document_id"]), text_html(name)
        )
        rows.append(
            f'<li{" class=on" if is_chosen else ""}>{opened}<br><span class="dim">'
            f"{text_html(say('{n} tokens in spans', n=document['num_tokens']))} {numbers} · {mark}</span></li>"
        )
    if not rows:
        return f"<p>{text_html(say('The documents of these spans are not known to the export.'))}</p>"
    more = len(found["documents"]) - DOCUMENTS_SHOWN
    note = f'<p class="dim">{text_html(say("and {n} more in the JSON", n=more))}</p>' if more > 0 else ""
    return f'<ol class="spans">{"".join(rows)}</ol>{note}'


def span_html(
    place: Place, say: Say, found: Json, index: int, *, whole: Json, seen: Json, checkpoint: int, last_step: int
) -> str:
    """One span: how often and when, and its places. whole, seen: the span alone, in the run and up to the checkpoint."""
    span = found["spans"][index]
    total, hits = (answer["spans"][0] if answer["spans"] else None for answer in (whole, seen))
    parts = [_walk(place, say, found["spans"], index)]
    parts.append(f'<div class="quote" dir="auto" tabindex="0">{text_html(span["text"])}</div>')
    count = times_text(say, span["count"], span["count_relation"])
    if total is not None and checkpoint < last_step:
        seen_text = say(
            "{n} before checkpoint {step}, {all} in the whole run", n=count, step=f"{checkpoint:,}",
            all=times_text(say, total["count"], total["count_relation"]),
        )  # fmt: skip
    else:
        seen_text = count
    facts = [
        (say("seen"), f'<span data-test="seen">{text_html(seen_text)}</span>'),
        (say("steps"), text_html(steps_text(say, span["first_step"], span["last_step"]))),
        (say("length"), text_html(say("{n} tokens", n=span["num_tokens"]))),
    ]
    ranks = span["dp_ranks"] if span["dp_ranks"] is not None else (hits or {}).get("dp_ranks")
    if ranks:
        shown = ", ".join(map(str, ranks[:16])) + (" …" if len(ranks) > 16 else "")
        facts.append((say("data-parallel ranks"), text_html(shown)))
    parts.append('<dl class="small">' + "".join(f"<dt>{text_html(k)}</dt><dd>{v}</dd>" for k, v in facts) + "</dl>")
    if total is not None:
        parts.append(f"<h3>{text_html(say('Exposures over steps'))}</h3>")
        parts.append(exposures_chart(place, say, total["exposures"], whole["step_edges"], checkpoint, last_step))
    parts.append(_joined(place, say, found, index))
    parts.append(f"<h3>{text_html(say('Where it was trained on'))}</h3>")
    shown_hits = hits["hits"] if hits is not None else span["hits"]
    parts.extend(hit_html(place, say, hit, span["text"], span["num_tokens"]) for hit in shown_hits)
    left = span["count"] - len(shown_hits)
    if left > 0:
        more = text_html(say("and {n} more", n=f"{left:,}"))
        if len(span["token_ids"]) <= SEARCHABLE_TOKENS:
            query = f"ids:[{' '.join(map(str, span['token_ids']))}]"
            more = place.link(place.to("search", q=query), more)
        parts.append(f"<p>{more}</p>")
    return "".join(parts)


def hit_html(place: Place, say: Say, hit: Json, text: str, num_tokens: int) -> str:
    """One place of a span, in its context, with the ways to its sequence, step and documents."""
    address = hit["address"]
    sequence = place.link(
        place.to("sequence", address=address, at=f"{hit['offset']}-{hit['offset'] + num_tokens}"),
        f'<span class="mono">{text_html(address)}</span>',
        name="to-sequence",
    )
    step = place.link(
        place.to("steps", step=hit["global_step"]), text_html(say("step {n}", n=f"{hit['global_step']:,}"))
    )
    documents = [
        place.link(
            place.to("documents", source=segment["source"], document=segment["document_id"]),
            text_html(f"{segment['source']} / {segment['document_id']}"),
        )
        for segment in hit["segments"]
        if segment["document_id"]
    ]
    named = " + ".join(documents) or text_html(say("document unknown"))
    rank = text_html(say("rank {n}", n=hit["dp_rank"]))
    shown = one_line(text, 400) if len(text) > 400 else text
    return (
        f'<div class="hit">{step} · {rank} · {named}<br><span class="dim">{sequence} '
        f"{text_html(say('from token {n}', n=hit['offset']))}</span>"
        f'<div class="context" dir="auto">{text_html(hit["context_before"])}<mark>{text_html(shown)}</mark>'
        f"{text_html(hit['context_after'])}</div></div>"
    )


def exposures_chart(
    place: Place, say: Say, exposures: Sequence[int], edges: Sequence[int], checkpoint: int, last_step: int
) -> str:
    """Exposures by bin of steps; what comes after the checkpoint is pale. A bar leads to the first step of its bin."""
    data = []
    for first, after, count in zip(edges, edges[1:], exposures, strict=False):
        label = f"{steps_text(say, first, after - 1)}: {say('seen {times}', times=times_text(say, count))}"
        data.append(Bar(first, after, count, label, place.to("steps", step=first), dim=first > checkpoint))
    label = say("Exposures over steps; the line stands after model checkpoint {n}", n=f"{checkpoint:,}")
    chart = bars(data, label=label, checkpoint=checkpoint if checkpoint < last_step else None)
    return f'{chart}<p class="dim">{text_html(label)}</p>' if checkpoint < last_step else chart


def _listed(spans: Sequence[Json]) -> list[tuple[int, Json]]:
    listed = [(index, span) for index, span in enumerate(spans) if span["rarity_rank"] is not None]
    return sorted(listed, key=lambda item: item[1]["rarity_rank"])


def _number_link(place: Place, span: Json, index: int) -> str:
    label = f"[{span['rarity_rank'] + 1}]" if span["rarity_rank"] is not None else f"({index})"
    return place.link(place.here(span=span_name(span), doc=None), label)


def _walk(place: Place, say: Say, spans: Sequence[Json], index: int) -> str:
    """The span's title, and the way to the ones before and after it in the text."""
    span = spans[index]
    num_listed = sum(other["rarity_rank"] is not None for other in spans)
    rank = span["rarity_rank"]
    title = say("Span {n} of {all}", n=rank + 1, all=num_listed) if rank is not None else say("A common span")
    links = [place.link(place.here(span=None), text_html(say("all spans")))]
    if index > 0:
        links.append(place.link(place.here(span=span_name(spans[index - 1])), text_html(say("◂ before"))))
    if index + 1 < len(spans):
        links.append(place.link(place.here(span=span_name(spans[index + 1])), text_html(say("next ▸"))))
    colour = f'<span class="legend swatch"><span class="m r{shade(span, num_listed)}"> </span></span> '
    return f'<nav class="tabs">{" ".join(links)}</nav><h2>{colour}{text_html(title)}</h2>'


def _joined(place: Place, say: Say, found: Json, index: int) -> str:
    """A note where the cut between two packed sequences goes through a passage."""
    notes = []
    for joined in found["joined"]:
        if index in (joined["first"], joined["second"]):
            other = joined["second"] if index == joined["first"] else joined["first"]
            text = say(
                "The cut between two packed sequences goes through this passage of {document}: it goes on in another span.",
                document=f"{joined['source']} / {joined['document_id']}",
            )
            href = place.here(span=span_name(found["spans"][other]))
            notes.append(f'<p class="dim">{place.link(href, text_html(text), title=attribute(text))}</p>')
    return "".join(notes[:3])
