"""From what was staged to what is written: rows, their leaves, and the frame of a step. Synchronous, no disk, no clock
but the one that stamps step records.

The exporter's writer thread drives it; so does the simulated job of the tests, without a thread.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from train_hooks.documents import DocumentResolver, PartResolver
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.errors import InputError, Mismatch, RowError
from train_hooks.export_format.records import (
    AttemptInfo,
    Evidence,
    Matched,
    Row,
    RowLoss,
    RunInfo,
    Segment,
    SequenceAddress,
    StepRecord,
    StepStatus,
    TensorRecord,
    in_32_bits,
)
from train_hooks.export_format.tensors import encode_tensor, token_tensor
from train_hooks.export_format.writing.frames import Frame, FrameMaker

__all__ = [
    "CommitRequest",
    "CommittedStep",
    "LateMicrobatch",
    "RowBuilder",
    "StagedMicrobatch",
    "check_shapes",
    "checked_metrics",
    "gap_of",
    "losses_record",
    "metrics_record",
    "note_of",
    "unfit_shape",
    "without_rows",
]

_PAUSE_S = 2e-5  # between rows the writer thread lets go of the interpreter, which training may be waiting for


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedMicrobatch:
    """A micro-batch as the forward call got it, owned by the exporter.

    tokens: integers [num_slots, length], of a length that the run may hold; tensors: name → [num_slots, …];
    batch_tensors: name → tensor of any shape that belongs to the micro-batch as a whole, kept in the row of slot 0;
    segments: one tuple a slot, or () where the documents are unknown; sample_index: one a slot, or None;
    sample_start: where each row begins in its sample, where samples are cut into rows; loss: mean loss of each
    sequence, or None; segment_losses: of each segment of each sequence, or None; tokens_key: name of the token
    tensor, so that its dtype is kept as well; dtypes: name → torch dtype of tensors whose bits are given as integers,
    since numpy lacks it; evidence, matched, relation: how the tokens are known, where it is not as the attempt's
    defaults say; tensor_evidence: the same of tensors, by name; release: called on the writer thread when the arrays
    are not needed any more.
    """

    tokens: npt.NDArray[np.integer]
    tensors: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    batch_tensors: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    segments: Sequence[Sequence[Segment]] = ()
    sample_index: Sequence[int] | None = None
    sample_start: Sequence[int] | None = None
    loss: Sequence[float | None] | None = None
    segment_losses: Sequence[Sequence[float | None]] | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)
    evidence: Evidence | None = None
    matched: Matched | None = None
    relation: str | None = None
    tensor_evidence: Mapping[str, Evidence] = field(default_factory=dict)
    tokens_key: str | None = None
    release: Callable[[], None] | None = None

    @property
    def num_slots(self) -> int:
        """Sequences in it."""
        return len(self.tokens)

    @property
    def size_bytes(self) -> int:
        """Memory that it holds, roughly."""
        arrays = [self.tokens, *self.tensors.values(), *self.batch_tensors.values()]
        return sum(array.nbytes for array in arrays) + 256 * len(self.segments)


class LateMicrobatch(Protocol):
    """A micro-batch whose arrays are not there yet, as when a device still copies them."""

    num_slots: int
    size_bytes: int
    late: bool
    """Whether it must be resolved even where its step is not written: others come after it."""

    def release(self) -> None:
        """Instead of `resolve`: it is not needed."""

    def resolve(self) -> list[StagedMicrobatch]:
        """On the writer thread, once, in the order of staging: the micro-batches, as often none or one as several.

        Raises Mismatch where they are not what the forward got.
        """


Staged = StagedMicrobatch | LateMicrobatch


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedStep:
    """A committed step on its way to the disk, or (kind NOTE) step records alone. `dropped` is not written."""

    kind: AckKind
    global_step: int
    status: StepStatus | None
    microbatches: tuple[Staged, ...]
    records: tuple[StepRecord, ...]
    size_bytes: int
    dropped: tuple[Staged, ...] = ()


def unfit_shape(run: RunInfo, expected: str, found: Sequence[int]) -> str:
    """What is wrong with tokens of another shape than the run's. expected: the text up to what was found, {} for the length."""
    length = f"1 to {run.sequence_length}" if run.shorter_rows else str(run.sequence_length)
    shorter = 0 < found[-1] < run.sequence_length and not run.shorter_rows
    return (
        f"expected {expected.format(length)} {list(found)}; the run was attached with sequence_length={run.sequence_length}"
        + (", and with shorter_rows=True it would hold shorter ones" if shorter else "")
    )


def check_shapes(microbatch: StagedMicrobatch, run: RunInfo) -> None:
    """Raises RowError for a shape or dtype that the run cannot hold; cheap enough for the training thread."""
    tokens = microbatch.tokens
    if tokens.ndim != 2 or not run.may_hold(tokens.shape[1]) or tokens.dtype.kind not in "iu":
        raise RowError(
            unfit_shape(run, f"integer tokens of shape [micro-batch, {{}}], found {tokens.dtype}", tokens.shape)
        )
    num_slots = tokens.shape[0]
    for name, values in (
        ("segments", microbatch.segments or None),
        ("sample_index", microbatch.sample_index),
        ("sample_start", microbatch.sample_start),
        ("loss", microbatch.loss),
        ("segment_losses", microbatch.segment_losses),
    ):
        if values is not None and len(values) != num_slots:
            raise RowError(f"{name}: expected one for each of {num_slots} sequences, found {len(values)}")
    for name, value in microbatch.tensors.items():
        if value.ndim < 1 or value.shape[0] != num_slots or value.dtype.hasobject:
            raise RowError(
                f"tensor {name!r}: expected numbers of shape [{num_slots}, …], found {value.dtype} {list(value.shape)}"
            )


def checked_metrics(global_step: int, metrics: Mapping[str, float]) -> dict[str, float]:
    """The trainer's metrics as names and numbers. Raises RowError for what is no number."""
    try:
        return {str(name): float(value) for name, value in metrics.items()}
    except (TypeError, ValueError) as error:
        raise RowError(f"metrics of step {global_step}: expected numbers, found {dict(metrics)!r}") from error


def metrics_record(global_step: int, values: Mapping[str, float], unix_time_s: float) -> StepRecord:
    """Checked metrics of a step as they are written; unix_time_s: when the trainer gave them."""
    return StepRecord(global_step=global_step, kind="metrics", unix_time_s=unix_time_s, values=values)


def losses_record(global_step: int, rows: Sequence[RowLoss], unix_time_s: float) -> StepRecord:
    """Losses of rows of a step that is written already."""
    return StepRecord(global_step=global_step, kind="losses", unix_time_s=unix_time_s, rows=tuple(rows))


def note_of(global_step: int, records: tuple[StepRecord, ...]) -> CommittedStep:
    """Step records alone, after step `global_step`."""
    return CommittedStep(
        kind=AckKind.NOTE, global_step=global_step, status=None, microbatches=(), records=records, size_bytes=0
    )


def gap_of(step: CommittedStep, reason: str, num_rows: int | None = None) -> CommittedStep:
    """The same step without its rows, and the record that says so. num_rows: how many, where it is known better."""
    if num_rows is None:
        num_rows = sum(microbatch.num_slots for microbatch in step.microbatches)
    gap = StepRecord(
        global_step=step.global_step, kind="gap", unix_time_s=time.time(), values={"num_rows": num_rows}, text=reason
    )
    return CommittedStep(
        kind=AckKind.STEP, global_step=step.global_step, status=step.status, microbatches=(),
        records=(*step.records, gap), size_bytes=1024, dropped=step.microbatches,
    )  # fmt: skip


class CommitRequest(NamedTuple):
    """A committed step as the training thread leaves it, which makes nothing that the writer thread can make."""

    global_step: int
    status: StepStatus
    microbatches: list[Staged]
    metrics: dict[str, float] | None
    unix_time_s: float
    size_bytes: int
    gap: str | None = None
    gap_rows: int | None = None

    def step(self) -> CommittedStep:
        """What the row builder takes."""
        records = () if self.metrics is None else (metrics_record(self.global_step, self.metrics, self.unix_time_s),)
        step = CommittedStep(
            kind=AckKind.STEP, global_step=self.global_step, status=self.status,
            microbatches=tuple(self.microbatches), records=records, size_bytes=self.size_bytes,
        )  # fmt: skip
        return step if self.gap is None else gap_of(step, self.gap, self.gap_rows)


def without_rows(step: CommitRequest, reason: str, size_bytes: int) -> CommitRequest:
    """The same step as a gap, which holds no memory of its rows any more."""
    kept: list[Staged] = []
    for staged in step.microbatches:
        if not isinstance(staged, StagedMicrobatch) and staged.late:
            kept.append(staged)
        elif staged.release is not None:
            staged.release()
    num_rows = sum(microbatch.num_slots for microbatch in step.microbatches)
    return step._replace(microbatches=kept, size_bytes=size_bytes, gap=reason, gap_rows=num_rows)


class RowBuilder:
    """Makes the frames of one dp_rank of one attempt.

    gaps: whether a step that mismatches becomes a gap. seen: is told the step and the tokens of every micro-batch.
    """

    def __init__(
        self,
        run: RunInfo,
        attempt: AttemptInfo,
        dp_rank: int,
        secret: bytes,
        *,
        documents: DocumentResolver | None = None,
        gaps: bool = False,
        seen: Callable[[int, npt.NDArray[np.integer]], None] | None = None,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._run, self._make = run, FrameMaker(attempt, dp_rank, secret)
        self._documents, self._gaps, self._seen, self._pause_s = documents, gaps, seen, pause_s
        self._dtype = np.dtype(run.token_dtype)

    def frame(self, step: CommittedStep) -> Frame:
        """The frame of a step. Raises RowError for a token or segment that the run cannot hold, Mismatch."""
        microbatches, mismatch = _resolved(step.dropped or step.microbatches)
        if mismatch is not None and not (self._gaps or step.dropped):
            raise mismatch
        if mismatch is not None and not step.dropped:
            step = gap_of(step, str(mismatch), sum(microbatch.num_slots for microbatch in microbatches))
            warnings.warn(f"written as a gap, without its rows: {mismatch}", stacklevel=2)
        if step.dropped:
            for microbatch in microbatches:
                _release(microbatch)
            microbatches = []
        filled = [microbatch for microbatch in microbatches if microbatch.num_slots]
        rows = tuple(row for index, microbatch in enumerate(filled) for row in self._rows(step, index, microbatch))
        for microbatch in microbatches:
            _release(microbatch)
        return self._make.frame(step.kind, step.global_step, step.status, rows, step.records)

    def _rows(self, step: CommittedStep, index: int, microbatch: StagedMicrobatch) -> list[Row]:
        check_shapes(microbatch, self._run)
        tokens = self._checked_tokens(step.global_step, microbatch.tokens)
        if self._seen is not None:
            self._seen(step.global_step, microbatch.tokens)
        rows = []
        for slot in range(tokens.shape[0]):
            rows.append(self._row(step, index, slot, tokens[slot], microbatch))
            if self._pause_s:
                time.sleep(self._pause_s)
        return rows

    def _checked_tokens(self, global_step: int, tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.unsignedinteger]:
        if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) >= self._run.vocab_size):
            raise RowError(
                f"step {global_step}: expected token ids in [0, {self._run.vocab_size}), found "
                f"{int(tokens.min())} to {int(tokens.max())}; attach with the model's vocab_size"
            )
        return tokens.astype(self._dtype)

    def _row(
        self,
        step: CommittedStep,
        index: int,
        slot: int,
        tokens: npt.NDArray[np.unsignedinteger],
        microbatch: StagedMicrobatch,
    ) -> Row:
        address = self._make.address(step.global_step, index, slot)
        sample_index = None if microbatch.sample_index is None else int(microbatch.sample_index[slot])
        if sample_index is not None and not 0 <= sample_index < 1 << 63:
            raise RowError(f"{address}: expected a sample_index in [0, 2^63), found {sample_index}")
        segments = tuple(microbatch.segments[slot]) if microbatch.segments else ()
        if self._documents is not None and sample_index is not None and not microbatch.segments:
            start = None if microbatch.sample_start is None else microbatch.sample_start[slot]
            segments = tuple(_looked_up(self._documents, sample_index, start, tokens))
        _check_segments(address, segments, len(tokens))
        segments = _with_losses(address, segments, microbatch.segment_losses, slot)
        return self._make.row(
            address,
            tokens,
            segments,
            tuple(_tensors_of(microbatch, slot, tokens, segments)),
            sample_index=sample_index,
            status=step.status or StepStatus.APPLIED,
            loss=None if microbatch.loss is None else in_32_bits(microbatch.loss[slot]),
            evidence=microbatch.evidence,
            matched=microbatch.matched,
            relation=microbatch.relation,
        )


def _with_losses(
    address: SequenceAddress,
    segments: tuple[Segment, ...],
    losses: Sequence[Sequence[float | None]] | None,
    slot: int,
) -> tuple[Segment, ...]:
    if losses is None:
        return segments
    if len(losses[slot]) != len(segments):
        raise RowError(
            f"{address}: expected a loss for each of its {len(segments)} segments, found {len(losses[slot])}"
        )
    return tuple(replace(segment, loss=in_32_bits(loss)) for segment, loss in zip(segments, losses[slot], strict=True))


def _looked_up(
    documents: DocumentResolver, sample_index: int, start: int | None, tokens: npt.NDArray[np.unsignedinteger]
) -> Sequence[Segment]:
    if start is None:
        return documents.segments(sample_index, tokens)
    if not isinstance(documents, PartResolver):
        raise InputError(
            f"sample {sample_index}: expected documents= that finds those of a part of a sample (segments_of_part), since "
            f"the loader says sample_start, found {type(documents).__name__}; give a PartResolver, or no documents"
        )
    return documents.segments_of_part(sample_index, start, tokens)


def _tensors_of(
    microbatch: StagedMicrobatch, slot: int, tokens: npt.NDArray[np.unsignedinteger], segments: Sequence[Segment]
) -> Iterator[TensorRecord]:
    """The records of the slot's row of each tensor, by name; in slot 0 also those of the whole micro-batch."""
    rows = {name: np.asarray(value[slot]) for name, value in microbatch.tensors.items()}
    if microbatch.sample_start is not None:
        rows["sample_start"] = np.asarray(microbatch.sample_start[slot], np.int64)
    names = {*rows, *((microbatch.tokens_key,) if microbatch.tokens_key is not None else ())}
    for name in sorted(names):
        if name == microbatch.tokens_key:
            yield token_tensor(name, microbatch.tokens.dtype, len(tokens))
        else:
            yield encode_tensor(
                name, rows[name], tokens, segments, dtype=microbatch.dtypes.get(name),
                evidence=microbatch.tensor_evidence.get(name),
            )  # fmt: skip
    for name, value in sorted(microbatch.batch_tensors.items() if slot == 0 else ()):
        yield encode_tensor(
            name, value, tokens, segments, dtype=microbatch.dtypes.get(name), whole=True,
            evidence=microbatch.tensor_evidence.get(name),
        )  # fmt: skip


def _resolved(all_staged: Sequence[Staged]) -> tuple[list[StagedMicrobatch], Mismatch | None]:
    """The micro-batches of a step, and why they are not all."""
    found: list[StagedMicrobatch] = []
    mismatch = None
    for staged in all_staged:
        try:
            found += [staged] if isinstance(staged, StagedMicrobatch) else staged.resolve()
        except Mismatch as error:
            mismatch = mismatch or error
    return found, mismatch


def _release(microbatch: StagedMicrobatch) -> None:
    if microbatch.release is not None:
        microbatch.release()


def _check_segments(address: SequenceAddress, segments: Sequence[Segment], num_tokens: int) -> None:
    position = 0
    for segment in segments:
        if segment.start < position or segment.length < 1 or segment.start + segment.length > num_tokens:
            raise RowError(
                f"{address}: segments must follow one another inside [0, {num_tokens}); found start {segment.start}, "
                f"length {segment.length} after position {position}"
            )
        position = segment.start + segment.length
