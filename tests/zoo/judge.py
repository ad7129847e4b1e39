"""Is the record what the log says? Of the hook's code this calls readers alone.

Of each acknowledged step: one recorded micro-batch for each micro-batch that a training forward got, in order, with its
tokens; every tensor as the forward got it, as the loader yielded it, or as the loop declared it, whichever its evidence
says; sample_index and documents of the row that it was; and nothing else.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.zoo.log import Fetched, Forward, ForwardLog, Step
from tests.zoo.table import Loop
from train_hooks.export_format.reading.reader import AttemptReader, RunReader
from train_hooks.export_format.records import AttemptInfo, Evidence, Matched, Row, StepStatus
from train_hooks.replay import ReplayMicrobatches

__all__ = ["Record", "Recorded", "differences", "read_record"]

_MOST = 0.6
"""A row that was edited is the loader's row that has this share of its tokens in the same places."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """One recorded micro-batch. tokens_name: which of its tensors is the tokens."""

    rows: Sequence[Row]
    batch: Mapping[str, Tensor]
    info: AttemptInfo
    tokens_name: str

    @property
    def tokens(self) -> Tensor:
        """int64 [num_slots, length]."""
        return torch.stack([torch.from_numpy(row.tokens.astype("int64")) for row in self.rows])

    @property
    def evidence(self) -> Evidence | None:
        """Of its tokens."""
        return self.rows[0].evidence or self.info.default_evidence

    @property
    def matched(self) -> Matched | None:
        """How its rows were tied to a forward."""
        return self.rows[0].matched or self.info.default_matched

    @property
    def relation(self) -> list[str]:
        """In what the forward's tokens differ in form."""
        return (self.rows[0].relation or "").split("; ") if self.rows[0].relation else []

    def others(self) -> Iterator[tuple[str, bool, Evidence | None]]:
        """Name, whether it belongs to the micro-batch as a whole, and evidence of each tensor beside the tokens."""
        for tensor in self.rows[0].tensors:
            if tensor.name != self.tokens_name:
                yield tensor.name, tensor.whole, tensor.evidence or self.info.default_tensor_evidence


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """What readers believe of a run: acknowledged steps, by data-parallel rank."""

    steps: Mapping[int, StepStatus]
    microbatches: Mapping[tuple[int, int], Sequence[Recorded]]
    gaps: Mapping[int, str | None]


def read_record(run_dir: Path, tokens: Container[str] = ()) -> Record:
    """The canonical record of a run. tokens: what the loop's loaders call their tokens."""
    owners: dict[int, AttemptReader] = {}
    for attempt in RunReader(run_dir).attempts():
        owners = {step: owner for step, owner in owners.items() if step <= attempt.info.resume_step}
        owners.update(dict.fromkeys(attempt.committed_steps(), attempt))
    replay = ReplayMicrobatches(run_dir)
    found: dict[tuple[int, int], list[Recorded]] = {}
    gaps: dict[int, str | None] = {}
    statuses: dict[int, StepStatus] = {}
    for step, attempt in owners.items():
        for frame in attempt.frames(step, step):
            statuses[step] = frame.ack.status or StepStatus.APPLIED
            gaps.update({record.global_step: record.text for record in frame.records if record.kind == "gap"})
            parts: dict[int, list[Row]] = {}
            for row in attempt.rows(frame):
                parts.setdefault(row.address.microbatch, []).append(row)
            found[step, frame.dp_rank] = [
                Recorded(
                    rows=rows,
                    batch=replay[step, frame.dp_rank, number].batch,
                    info=attempt.info,
                    tokens_name=_tokens_name(rows, tokens),
                )
                for number, rows in sorted(parts.items())
            ]
    return Record(steps=statuses, microbatches=found, gaps=gaps)


def _tokens_name(rows: Sequence[Row], tokens: Container[str]) -> str:
    """The tensor that is stored as the tokens, as labels that are equal to them may be too."""
    stored = [tensor.name for tensor in rows[0].tensors if tensor.encoding == "tokens"]
    return next((name for name in stored if name in tokens), stored[0])


def differences(record: Record, dp_rank: int, log: ForwardLog, loop: Loop) -> list[str]:
    """In what the record of a data-parallel rank differs from its log: silent errors, each with step and micro-batch."""
    found = []
    for global_step, status in record.steps.items():
        step = log.steps.get(global_step)
        if step is None or global_step == log.failed_step:
            found.append(f"step {global_step} is acknowledged, and the loop has no such step")
            continue
        where = f"step {global_step}, dp_rank {dp_rank}"
        if step.status not in (None, str(status)):
            found.append(f"{where}: status {status}, not {step.status}")
        if (global_step in record.gaps) != (global_step in loop.gaps):
            found.append(f"{where}: gap {record.gaps.get(global_step)}, expected gaps {loop.gaps}")
        if global_step not in record.gaps:
            recorded = record.microbatches.get((global_step, dp_rank), [])
            found += [f"{where}{what}" for what in _StepJudge(step, log.fetched, loop).differences(recorded)]
    return found


class _StepJudge:
    """Compares one step."""

    def __init__(self, step: Step, fetched: Sequence[Fetched], loop: Loop) -> None:
        self._step, self._fetched, self._loop = step, fetched, loop

    def differences(self, recorded: Sequence[Recorded]) -> Iterator[str]:
        expected: list[tuple[Tensor, Forward | None]] = [(each.rows, None) for each in self._step.counted]
        if not expected:
            forwards = self._step.forwards
            expected = [(tokens, forward) for forward in forwards for tokens in forward.token_tensors()]
        if len(recorded) != len(expected):
            yield f": {len(recorded)} micro-batches are recorded, the forwards got {len(expected)}"
            return
        for number, (part, (tokens, forward)) in enumerate(zip(recorded, expected, strict=True)):
            for what in (*self._rows(part), *self._tokens(part, tokens, forward), *self._tensors(part, forward)):
                yield f", micro-batch {number}: {what}"

    def _rows(self, part: Recorded) -> Iterator[str]:
        """What rows say of themselves: the same in all rows, and what the loop says."""
        if len({(row.evidence, row.matched, row.relation) for row in part.rows}) > 1:
            yield "its rows differ in evidence, matched or relation"
        if self._loop.matched not in ("any", part.matched):
            yield f"matched {part.matched}, not {self._loop.matched}"
        expected = {part.tokens_name: part.evidence, **{name: evidence for name, _, evidence in part.others()}}
        for name, evidence in self._loop.evidence.items():
            if expected.get(name) != evidence:
                yield f"{name!r} has evidence {expected.get(name)}, not {evidence}"

    def _tokens(self, part: Recorded, tokens: Tensor, forward: Forward | None) -> Iterator[str]:
        if forward is None:
            if not torch.equal(part.tokens, tokens.to(torch.int64)):
                yield _first_difference(part.tokens, tokens)
            if part.evidence is Evidence.FORWARD and not self._was_fed(part):
                yield "its tokens have evidence forward, and no forward got them"
            return
        if part.evidence is not Evidence.FORWARD:
            yield f"its tokens have evidence {part.evidence}, and a forward got them"
        if not any(_values_equal(tokens, form) for form in self._forms(part, tokens)):
            yield _first_difference(part.tokens, tokens)
        yield from _relation(part, tokens)

    def _was_fed(self, part: Recorded) -> bool:
        fed = {
            tuple(row.tolist())
            for forward in self._step.forwards
            for tokens in forward.token_tensors()
            for row in (tokens.to(torch.int64) if tokens.ndim == 2 else tokens[None].to(torch.int64))
        }
        return all(any(tuple(row.tolist())[: len(got)] == got for got in fed) for row in part.tokens)

    def _forms(self, part: Recorded, like: Tensor) -> Iterator[Tensor]:
        """What the forward may have got of the recorded tokens."""
        yield part.tokens.reshape(like.shape) if part.tokens.numel() == like.numel() else part.tokens
        if part.matched is Matched.SLICE:
            yield from self._slices(part.tokens, like)

    def _slices(self, whole: Tensor, like: Tensor) -> Iterator[Tensor]:
        if whole.ndim < 2 or like.ndim < 2:
            return
        yield whole[:, : like.shape[1]]
        for fetched in self._fetched[-1:]:
            columns = fetched.options.get("columns")
            if columns is not None:
                yield whole[:, columns]

    def _tensors(self, part: Recorded, forward: Forward | None) -> Iterator[str]:
        sources = [self._sources(row) for row in part.rows]
        for name, whole, evidence in part.others():
            value = part.batch[name]
            if name == "sample_start":
                continue
            if evidence is Evidence.FORWARD:
                if not self._forward_got(name, value, forward, part):
                    yield f"{name!r} has evidence forward, and the forward got another"
            elif evidence is Evidence.LOADER:
                if forward is not None and name in forward.named and part.matched is Matched.WHOLE:
                    yield f"{name!r} has evidence loader, and the forward got it by its name"
                if not all(
                    _loader_yielded(name, value if whole else value[slot], whole, self._fetched, found)
                    for slot, found in enumerate(sources)
                ):
                    yield f"{name!r} has evidence loader, and the loader yielded another for these rows"
            elif evidence is Evidence.DECLARED:
                declared = None if forward is None else forward.declared.get(name)
                if declared is None or not _same_bits(declared, value):
                    yield f"{name!r} has evidence declared, and the loop declared another"
            else:
                yield f"{name!r} has no evidence"
        yield from self._origin(part, sources, forward)

    def _forward_got(self, name: str, value: Tensor, forward: Forward | None, part: Recorded) -> bool:
        forwards = self._step.forwards if forward is None else [forward]
        for each in forwards:
            named = each.named.get(name)
            for fed in each.tensors() if named is None else [named]:
                if _same_bits(fed, value, reshaped=True):
                    return True
                if part.matched is Matched.SLICE and any(
                    _same_bits(fed, form, reshaped=True) for form in self._slices(value, fed)
                ):
                    return True
        return False

    def _sources(self, row: Row) -> list[tuple[Fetched, int]]:
        """Rows of the loader's that this may be: those with its tokens or most of them, else that of its sample_index."""
        rows = [(fetched, slot) for fetched in self._fetched for slot in range(len(fetched.rows))]
        named = [(f, slot) for f, slot in rows if f.sample_index and f.sample_index[slot] == row.sample_index]
        alike = _alike(rows, torch.from_numpy(row.tokens.astype("int64")))
        return [place for place in alike if place in named] or alike or named

    def _origin(
        self, part: Recorded, sources: Sequence[list[tuple[Fetched, int]]], forward: Forward | None
    ) -> Iterator[str]:
        """sample_index, documents and names are those of the loader's row, where its tokens tell which that is."""
        equal = [_alike(places, tokens) for tokens, places in zip(part.tokens, sources, strict=True)]
        for row, places in zip(part.rows, equal, strict=True):
            if not places:
                continue
            fetched, slot = places[0]
            if row.sample_index not in (indices := {f.sample_index and f.sample_index[slot] for f, slot in places}):
                yield f"slot {row.address.slot}: sample_index {row.sample_index}, the loader said {indices}"
            whole = len(row.tokens) == fetched.rows.shape[1]
            if fetched.segments is not None and whole and row.segments != fetched.segments[slot]:
                yield f"slot {row.address.slot}: other documents than the loader's"
        if not equal[0] or equal[0][0][0].options.get("record", "loader") != "loader":
            return
        yield from _names(part, equal[0][0][0], forward)
        if all(len(places) == 1 for places in equal) and part.matched is Matched.WHOLE and forward is not None:
            yield from _rows_relation(part, [places[0] for places in equal])


def _names(part: Recorded, fetched: Fetched, forward: Forward | None) -> Iterator[str]:
    """It has the loader's tensors, and those that were declared."""
    names = {name for name, _, _ in part.others()} - {"sample_start"}
    expected = (fetched.recorded_names() | (set(forward.declared) if forward else set())) - {part.tokens_name}
    if names != expected:
        yield f"it has the tensors {sorted(names)}, not {sorted(expected)}"


def _rows_relation(part: Recorded, places: Sequence[tuple[Fetched, int]]) -> Iterator[str]:
    """The relation speaks of rows where they are not those of one fetched micro-batch, all and in order."""
    first = places[0][0]
    whole = [slot for fetched, slot in places if fetched is first] == list(range(len(first.rows)))
    cut = any(what.startswith("[:") for what in part.relation)
    if not cut and any(what.startswith("rows") for what in part.relation) == (whole and len(places) == len(first.rows)):
        yield f"relation {part.relation}, and the forward got rows {[slot for _, slot in places]}"


def _relation(part: Recorded, tokens: Tensor) -> Iterator[str]:
    """The relation says so where the forward's tokens differ in dtype or shape, and only there."""
    dtype = next((what.removeprefix("dtype ") for what in part.relation if what.startswith("dtype ")), None)
    recorded = part.batch[part.tokens_name]
    fed = str(tokens.dtype).removeprefix("torch.")
    if fed != (dtype or str(recorded.dtype).removeprefix("torch.")):
        yield f"relation {part.relation}, and the forward got {fed}"
    shaped = any(what == "flatten" or what.startswith("shape ") for what in part.relation)
    one_row = tokens.ndim == 1 and len(part.rows) == 1  # a packed row, with or without its first dimension
    if part.matched is Matched.WHOLE and shaped == (tokens.shape == recorded.shape) and not one_row:
        yield f"relation {part.relation}, and the forward got {list(tokens.shape)} for {list(recorded.shape)}"


def _loader_yielded(
    name: str, value: Tensor, whole: bool, fetched: Sequence[Fetched], places: Sequence[tuple[Fetched, int]]
) -> bool:
    """Whether the loader yielded this with the row, or with any row where nothing tells which one it is."""
    for each, slot in places or [(f, slot) for f in fetched for slot in range(len(f.rows))]:
        found = each.tensors.get(name)
        if found is None:
            continue
        of_row = found if whole or found.ndim == 0 or len(found) != len(each.rows) else found[slot]
        if _same_bits(of_row, value, reshaped=True) or (value.ndim and _same_bits(of_row[: len(value)], value)):
            return True
    return False


def _alike(rows: Sequence[tuple[Fetched, int]], tokens: Tensor) -> list[tuple[Fetched, int]]:
    """Those that begin with the tokens; where none does, those that begin with most of them."""
    shares = [_share(fetched.rows[slot], tokens) for fetched, slot in rows]
    most = max(shares, default=0.0)
    return [place for place, share in zip(rows, shares, strict=True) if share == most and share >= _MOST]


def _share(row: Tensor, tokens: Tensor) -> float:
    if len(row) < len(tokens):
        return 0.0
    return float((row[: len(tokens)].to(torch.int64) == tokens).double().mean())


def _values_equal(fed: Tensor, recorded: Tensor) -> bool:
    return fed.shape == recorded.shape and torch.equal(fed.to(torch.int64), recorded)


def _same_bits(one: Tensor, other: Tensor, *, reshaped: bool = False) -> bool:
    if one.dtype != other.dtype or one.numel() != other.numel() or (one.shape != other.shape and not reshaped):
        return False
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _first_difference(recorded: Tensor, fed: Any) -> str:
    if recorded.shape != fed.shape:
        return f"tokens {list(recorded.shape)} are recorded, and the forward got others, {list(fed.shape)}"
    row = int((recorded != fed.to(torch.int64)).any(1).nonzero()[0])
    return f"row {row}: {recorded[row].tolist()} is recorded, and the forward got {fed[row].tolist()}"
