"""A packed sequence as HTML: its segments in colours with the cuts between them, as text or token by token."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ui.html.escape import attribute, text_html
from ui.html.places import Place
from ui.html.texts import Say

__all__ = ["Shown", "evidence_words", "matched_words", "parse_range", "replay_snippet", "row_html", "sequence_html"]

Json = Mapping[str, Any]
COLOURS = 6


@dataclass(frozen=True, slots=True)
class Shown:
    """How a sequence is looked at. marked: a range of tokens, [start, end), that the page was opened for."""

    as_tokens: bool = False
    marked: tuple[int, int] = (0, 0)


def parse_range(text: str) -> tuple[int, int]:
    """The range "12-40" of a URL; (0, 0) for anything else."""
    first, _, after = text.partition("-")
    if not (first.isascii() and first.isdigit() and after.isascii() and after.isdigit() and len(text) < 24):
        return 0, 0
    return int(first), int(after)


def sequence_html(place: Place, say: Say, sequence: Json, shown: Shown) -> str:
    """All segments, and what no segment covers, in the order of the tokens."""
    parts = []
    for index, (segment, start, end) in enumerate(_stretches(sequence["segments"], len(sequence["token_ids"]))):
        head = _head(place, say, segment, start, end)
        redacted = " hidden" if segment is not None and segment["source"] is None else ""
        body = _tokens if shown.as_tokens or sequence["token_texts"] is None else _text
        parts.append(
            f'<div class="segment s{index % COLOURS}{redacted}" dir="auto"><span class="head" dir="ltr">{head}</span>'
            f"{body(say, sequence, start, end, shown)}</div>"
        )
    return "".join(parts)


def row_html(place: Place, say: Say, sequence: Json) -> str:
    """What the export says of the row: where it stood, its neighbours, its hash."""
    run_id, attempt, step, rank, microbatch, slot = sequence["address"].split("/")
    facts = [
        (say("address"), f'<span class="mono">{text_html(sequence["address"])}</span>'),
        (
            say("where"),
            text_html(
                say(
                    "run {run}, attempt {attempt}, step {step}, data-parallel rank {rank}, micro-batch {m}, slot {q}",
                    run=run_id,
                    attempt=attempt[1:],
                    step=step[1:],
                    rank=rank[1:],
                    m=microbatch[1:],
                    q=slot[1:],
                )
            ),
        ),
        (say("status"), text_html(_status(say, sequence["status"]))),
        (
            say("size"),
            text_html(
                say("{n} tokens, segments: {k}", n=f"{len(sequence['token_ids']):,}", k=len(sequence["segments"]))
            ),
        ),
    ]
    facts += [
        (say("evidence"), text_html(evidence_words(say, sequence["evidence"]))),
        (say("matched"), text_html(matched_words(say, sequence["matched"], sequence["relation"]))),
    ]
    if sequence["loss"] is not None:
        facts.append((say("loss of the sequence"), f"{sequence['loss']:.4f}"))
    if sequence["sample_index"] is not None:
        facts.append((say("position in the data order"), f"{sequence['sample_index']:,}"))
    if sequence["loss_mask"] is not None:
        counted = sum(value is True for value in sequence["loss_mask"])
        total, name = len(sequence["loss_mask"]), sequence["loss_mask_of"]
        text = say("all {n} labels count (from the recorded {name})", n=f"{total:,}", name=name)
        if counted < total:
            text = say(
                "{n} of {all} labels count (from the recorded {name}); the others are struck out below",
                n=f"{counted:,}", all=f"{total:,}", name=name,
            )  # fmt: skip
        facts.append((say("loss mask"), text_html(text)))
    facts.append((say("leaf hash"), f'<span class="mono">{text_html(sequence["leaf"])}</span>'))
    rows = "".join(f"<dt>{text_html(name)}</dt><dd>{value}</dd>" for name, value in facts)
    return f'<dl class="small">{rows}</dl>{_neighbours(place, say, sequence, step[1:])}'


def replay_snippet(address: str) -> str:
    """Python that gives the recorded tensors of a sequence back."""
    _, attempt, step, rank, microbatch, slot = (part.lstrip("asrmq") for part in address.split("/"))
    return (
        "from train_hooks.replay import ReplayDataset\n\n"
        f'replay = ReplayDataset("RUN", attempt={attempt}, dp_rank={rank}, first_step={step}, last_step={step})\n'
        f"batch = next(replay.steps()).microbatches[{microbatch}].batch\n"
        f"row = {{name: value[{slot}] for name, value in batch.items()}}  # {address}\n"
    )


def evidence_words(say: Say, evidence: str | None) -> str:
    """How the tokens of a sequence are known."""
    if evidence is None:
        return say("not recorded")
    words = {
        "forward": say("forward: the tokens were seen in the forward call"),
        "loader": say("loader: the tokens are what the data loader yielded"),
        "declared": say("declared: the trainer or an importer handed the tokens over"),
    }
    return words.get(evidence, evidence)


def matched_words(say: Say, matched: str | None, relation: str | None) -> str:
    """How a sequence was tied to a forward, and how what the forward got differs in form."""
    if matched is None:
        return say("not recorded")
    words = {
        "whole": say("whole: the forward got all of the tokens"),
        "slice": say("slice: the forward got a part of the tokens"),
        "count": say("count: what a forward got was not seen"),
    }
    found = words.get(matched, matched)
    return found if relation is None else f"{found} ({relation})"


def _status(say: Say, status: str) -> str:
    words = {
        "applied": say("its update was applied"),
        "skipped_update": say("consumed, but its update was skipped"),
        "skipped_data": say("consumed without training"),
        "rerun": say("run again: another step of this number counts"),
    }
    return words.get(status, status)


def _neighbours(place: Place, say: Say, sequence: Json, step: str) -> str:
    links = []
    for name, label in (("before", say("◂ sequence before, on this rank")), ("after", say("next on this rank ▸"))):
        if sequence[name] is not None:
            href = place.here(address=sequence[name], at=None)
            links.append(place.link(href, text_html(label), name=name))
        else:
            none = (
                say("nothing before it in this attempt")
                if name == "before"
                else say("nothing after it in this attempt")
            )
            links.append(f'<span class="dim">{text_html(none)}</span>')
    links.append(place.link(place.to("steps", step=step), text_html(say("step {n}", n=f"{int(step):,}"))))
    return f'<nav class="near">{"".join(links)}</nav>'


def _stretches(segments: Sequence[Json], length: int) -> Iterator[tuple[Json | None, int, int]]:
    """Segments with their ranges, and the ranges between them."""
    at = 0
    for segment in segments:
        if segment["start"] > at:
            yield None, at, segment["start"]
        at = segment["start"] + segment["length"]
        yield segment, segment["start"], at
    if at < length:
        yield None, at, length


def _head(place: Place, say: Say, segment: Json | None, start: int, end: int) -> str:
    where = text_html(say("tokens {a}–{b}", a=f"{start:,}", b=f"{end - 1:,}"))
    if segment is None:
        return f"<b>{text_html(say('of no known document'))}</b> · {where}"
    if segment["source"] is None:
        return f"<b>{text_html(say('hidden'))}</b> · {where}"
    name = text_html(f"{segment['source']} / {segment['document_id']}")
    if segment["document_id"]:
        href = place.to("documents", source=segment["source"], document=segment["document_id"])
        name = place.link(href, name)
    offset = text_html(say("from token {n} of the document", n=f"{segment['document_token_offset']:,}"))
    return f"<b>{name}</b> · {where} · {offset}"


def _text(say: Say, sequence: Json, start: int, end: int, shown: Shown) -> str:
    """The text, with the marked range and what the loss mask leaves out in elements of their own."""
    texts, mask = sequence["token_texts"], sequence["loss_mask"]
    first, after = shown.marked

    def kind(at: int) -> tuple[bool, bool, bool]:
        return texts[at] is None, first <= at < after, mask is not None and mask[at] is False

    parts = []
    for (is_hidden, is_marked, is_out), places in groupby(range(start, end), kind):
        stretch = list(places)
        text = (
            f'<span class="dim">{text_html(say("{n} tokens hidden", n=len(stretch)))}</span>'
            if is_hidden
            else text_html("".join(texts[at] for at in stretch))
        )
        text = f'<del class="out">{text}</del>' if is_out and not is_hidden else text
        parts.append(f'<mark id="at">{text}</mark>' if is_marked else text)
    return "".join(parts)


def _tokens(say: Say, sequence: Json, start: int, end: int, shown: Shown) -> str:
    """Token by token, each with its id and place as a tooltip; ids where the run has no tokenizer."""
    ids, texts, mask = sequence["token_ids"], sequence["token_texts"], sequence["loss_mask"]
    first, after = shown.marked
    parts = []
    for at in range(start, end):
        names = "tok" + (" on" if first <= at < after else "")
        if ids[at] is None:
            parts.append(f'<span class="{names} dim">█</span>')
            continue
        names += " out" if mask is not None and mask[at] is False else ""
        text = str(ids[at]) if texts is None else texts[at]
        shown_text = text_html(text).replace("\n", "⏎\n") or "⋯"
        title = attribute(say("token {n}, id {id}", n=at, id=ids[at]))
        parts.append(f'<span class="{names}" title="{title}">{shown_text}</span>')
    return "".join(parts)
