"""From what was staged to what is written: rows, their leaves, and the frame of a step. Synchronous, no disk, no clock
but the one that stamps step records.

The exporter's writer thread drives it; so does the simulated job of the tests, without a thread.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from train_hooks.documents import DocumentResolver, PartResolver
from train_hooks.export_format.errors import InputError, Mismatch, RowError
from train_hooks.export_format.records import (
    AttemptInfo,
    Row,
    RunInfo,
    Segment,
    SequenceAddress,
    StepStatus,
    TensorRecord,
    in_32_bits,
)
from train_hooks.export_format.tensors import encode_tensor, token_tensor
from train_hooks.export_format.writing.frames import Frame, FrameMaker
from train_hooks.hook.export.committed_step import CommittedStep, as_gap
from train_hooks.hook.export.staging import Staged, StagedMicrobatch, check_shapes

__all__ = ["RowBuilder"]

_PAUSE_S = 2e-5  # between rows the writer thread lets go of the interpreter, which training may be waiting for


class RowBuilder:
    """Makes the frames of one dp_rank of one attempt.

    mismatch_as_gap: whether a step with a mismatch is written as a gap. on_tokens: is told the step and the tokens of every
    micro-batch.
    """

    def __init__(
        self,
        run: RunInfo,
        attempt: AttemptInfo,
        dp_rank: int,
        secret: bytes,
        *,
        documents: DocumentResolver | None = None,
        mismatch_as_gap: bool = False,
        on_tokens: Callable[[int, npt.NDArray[np.integer]], None] | None = None,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._run, self._make = run, FrameMaker(attempt, dp_rank, secret)
        self._documents, self._mismatch_as_gap = documents, mismatch_as_gap
        self._on_tokens, self._pause_s = on_tokens, pause_s
        self._dtype = np.dtype(run.token_dtype)

    def frame(self, step: CommittedStep) -> Frame:
        """The frame of a step. Raises RowError for a token or segment that the run cannot hold, Mismatch."""
        microbatches, mismatch = _resolve_all(step.dropped or step.microbatches)
        if mismatch is not None and not (self._mismatch_as_gap or step.dropped):
            raise mismatch
        if mismatch is not None and not step.dropped:
            step = as_gap(step, str(mismatch), sum(microbatch.num_slots for microbatch in microbatches))
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
        if self._on_tokens is not None:
            self._on_tokens(step.global_step, microbatch.tokens)
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
            segments = tuple(_looked_up_segments(self._documents, sample_index, start, tokens))
        _check_segments(address, segments, len(tokens))
        segments = _with_losses(address, segments, microbatch.segment_losses, slot)
        return self._make.row(
            address,
            tokens,
            segments,
            tuple(_tensor_records(microbatch, slot, tokens, segments)),
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


def _looked_up_segments(
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


def _tensor_records(
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


def _resolve_all(all_staged: Sequence[Staged]) -> tuple[list[StagedMicrobatch], Mismatch | None]:
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
