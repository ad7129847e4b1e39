"""A packed sequence as HTML: its segments in colours with the cuts between them, as text or token by token."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ui.html.escape import Html, joined, tag, text_html
from ui.html.evidence import evidence_words, matched_words
from ui.html.places import Place
from ui.html.tables import definitions_html
from ui.html.texts import Say

__all__ = ["SequenceView", "parse_range", "replay_snippet", "sequence_facts_html", "sequence_html"]

Json = Mapping[str, Any]
COLOURS = 6


@dataclass(frozen=True, slots=True)
class SequenceView:
    """How a sequence is shown. marked: a range of tokens, [start, end), that the page was opened for."""

    as_tokens: bool = False
    marked: tuple[int, int] = (0, 0)


def parse_range(text: str) -> tuple[int, int]:
    """The range "12-40" of a URL; (0, 0) for anything else."""
    first, _, after = text.partition("-")
    if not (first.isascii() and first.isdigit() and after.isascii() and after.isdigit() and len(text) < 24):
        return 0, 0
    return int(first), int(after)


def sequence_html(place: Place, say: Say, sequence: Json, view: SequenceView) -> Html:
    """All segments, and what no segment covers, in the order of the tokens."""
    write = _tokens if view.as_tokens or sequence["token_texts"] is None else _text
    parts = []
    for index, (segment, start, end) in enumerate(_stretches(sequence["segments"], len(sequence["token_ids"]))):
        is_hidden = segment is not None and segment["source"] is None
        head = tag("span", _head(place, say, segment, start, end), class_="head", dir="ltr")
        body = write(say, sequence, start, end, view)
        kind = f"segment s{index % COLOURS}" + (" hidden" if is_hidden else "")
        parts.append(tag("div", head, body, class_=kind, dir="auto"))
    return joined(parts)


def sequence_facts_html(place: Place, say: Say, sequence: Json) -> Html:
    """What the export says of the sequence: where it is, its neighbours, its hash."""
    run_id, attempt, step, rank, microbatch, slot = sequence["address"].split("/")
    where = say(
        "run {run}, attempt {attempt}, step {step}, data-parallel rank {rank}, micro-batch {m}, slot {q}", run=run_id,
        attempt=attempt[1:], step=step[1:], rank=rank[1:], m=microbatch[1:], q=slot[1:],
    )  # fmt: skip
    size = say("{n} tokens, segments: {k}", n=f"{len(sequence['token_ids']):,}", k=len(sequence["segments"]))
    facts: list[tuple[str, str]] = [
        (say("address"), tag("span", sequence["address"], class_="mono")),
        (say("where"), where),
        (say("status"), _status(say, sequence["status"])),
        (say("size"), size),
        (say("evidence"), evidence_words(say, sequence["evidence"])),
        (say("matched"), matched_words(say, sequence["matched"], sequence["relation"])),
    ]
    if sequence["loss"] is not None:
        facts.append((say("loss of the sequence"), f"{sequence['loss']:.4f}"))
    if sequence["sample_index"] is not None:
        facts.append((say("position in the data order"), f"{sequence['sample_index']:,}"))
    if sequence["loss_mask"] is not None:
        facts.append((say("loss mask"), _loss_mask_words(say, sequence["loss_mask"], sequence["loss_mask_of"])))
    facts.append((say("leaf hash"), tag("span", sequence["leaf"], class_="mono")))
    return definitions_html(facts) + _neighbours(place, say, sequence, step[1:])


def replay_snippet(address: str) -> str:
    """Python that gives the recorded tensors of a sequence back."""
    _, attempt, step, rank, microbatch, slot = (part.lstrip("asrmq") for part in address.split("/"))
    return (
        "from train_hooks.replay import ReplayDataset\n\n"
        f'replay = ReplayDataset("RUN", attempt={attempt}, dp_rank={rank}, first_step={step}, last_step={step})\n'
        f"batch = next(replay.steps()).microbatches[{microbatch}].batch\n"
        f"row = {{name: value[{slot}] for name, value in batch.items()}}  # {address}\n"
    )


def _status(say: Say, status: str) -> str:
    words = {
        "applied": say("its update was applied"),
        "skipped_update": say("consumed, but its update was skipped"),
        "skipped_data": say("consumed without training"),
        "rerun": say("run again: another step of this number counts"),
    }
    return words.get(status, status)


def _loss_mask_words(say: Say, loss_mask: Sequence[bool | None], name: str) -> str:
    counted, total = sum(value is True for value in loss_mask), len(loss_mask)
    if counted == total:
        return say("all {n} labels count (from the recorded {name})", n=f"{total:,}", name=name)
    return say(
        "{n} of {all} labels count (from the recorded {name}); the others are struck out below",
        n=f"{counted:,}", all=f"{total:,}", name=name,
    )  # fmt: skip


def _neighbours(place: Place, say: Say, sequence: Json, step: str) -> Html:
    links = []
    for name, label, none in (
        ("before", say("◂ sequence before, on this rank"), say("nothing before it in this attempt")),
        ("after", say("next on this rank ▸"), say("nothing after it in this attempt")),
    ):
        if sequence[name] is not None:
            links.append(place.link(place.here(address=sequence[name], at=None), label, name=name))
        else:
            links.append(tag("span", none, class_="dim"))
    links.append(place.link(place.to("steps", step=step), say("step {n}", n=f"{int(step):,}")))
    return tag("nav", *links, class_="near")


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


def _head(place: Place, say: Say, segment: Json | None, start: int, end: int) -> Html:
    where = say("tokens {a}–{b}", a=f"{start:,}", b=f"{end - 1:,}")
    if segment is None:
        return tag("b", say("of no known document")) + f" · {where}"
    if segment["source"] is None:
        return tag("b", say("hidden")) + f" · {where}"
    name = f"{segment['source']} / {segment['document_id']}"
    if segment["document_id"]:
        href = place.to("documents", source=segment["source"], document=segment["document_id"])
        name = place.link(href, name)
    offset = say("from token {n} of the document", n=f"{segment['document_token_offset']:,}")
    return tag("b", name) + f" · {where} · {offset}"


def _text(say: Say, sequence: Json, start: int, end: int, view: SequenceView) -> Html:
    """The text, with the marked range and what the loss mask leaves out in elements of their own."""
    texts, mask = sequence["token_texts"], sequence["loss_mask"]
    first, after = view.marked

    def kind(at: int) -> tuple[bool, bool, bool]:
        return texts[at] is None, first <= at < after, mask is not None and mask[at] is False

    parts = []
    for (is_hidden, is_marked, is_out), places in groupby(range(start, end), kind):
        stretch = list(places)
        if is_hidden:
            text = tag("span", say("{n} tokens hidden", n=len(stretch)), class_="dim")
        else:
            text = text_html("".join(texts[at] for at in stretch))
        text = tag("del", text, class_="out") if is_out and not is_hidden else text
        parts.append(tag("mark", text, id="at") if is_marked else text)
    return joined(parts)


def _tokens(say: Say, sequence: Json, start: int, end: int, view: SequenceView) -> Html:
    """Token by token, each with its id and place as a tooltip; ids where the run has no tokenizer."""
    ids, texts, mask = sequence["token_ids"], sequence["token_texts"], sequence["loss_mask"]
    first, after = view.marked
    parts = []
    for at in range(start, end):
        names = "tok" + (" on" if first <= at < after else "")
        if ids[at] is None:
            parts.append(tag("span", "█", class_=f"{names} dim"))
            continue
        names += " out" if mask is not None and mask[at] is False else ""
        text = str(ids[at]) if texts is None else texts[at].replace("\r", "").replace("\n", "⏎\n")
        title = say("token {n}, id {id}", n=at, id=ids[at])
        parts.append(tag("span", text or "⋯", class_=names, title=title))
    return joined(parts)
