"""The exporter of one writer rank: stage → commit → acknowledge. No torch in here.

- `stage` keeps a micro-batch (already cloned by the caller) for the step that is under way.
- `commit` ends the step: its micro-batches go to the writer thread with the step's status. It returns at once unless the
  queue is full; then it blocks, and after `block_timeout_s` stops the training with ExportStopped.
- The writer thread turns them into rows, hashes, writes and syncs them; one sync serves all steps that came meanwhile.
  What it has acknowledged is `acknowledged_step`.
- `checkpoint_barrier(step)` returns once every row of steps ≤ step is durable. Call it before a model checkpoint counts.
- An error of the writer thread is final: every later call raises it, so that training cannot go on unrecorded.
"""

import atexit
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.errors import ExportStopped, InputError, KisekiError, RowError
from train_hooks.export_format.leaf import leaf_hash
from train_hooks.export_format.records import (
    AttemptInfo,
    Row,
    RunInfo,
    Segment,
    SequenceAddress,
    StepRecord,
    StepStatus,
)
from train_hooks.export_format.tensors import encode_tensor
from train_hooks.export_format.writer import Frame, RankWriter

__all__ = ["Exporter", "ExporterOptions", "StagedMicrobatch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExporterOptions:
    """Limits of the queue and of group commit."""

    max_queue_bytes: int = 128 << 20
    block_timeout_s: float = 120.0
    group_interval_s: float = 1.0
    when_full: Literal["block", "drop"] = "block"
    roll_size_bytes: int = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedMicrobatch:
    """A micro-batch as the forward call got it, owned by the exporter.

    tokens: integers [num_slots, sequence_length]; tensors: name → [num_slots, …]; segments: one tuple a slot, or () where
    the documents are unknown; sample_index: one a slot, or None; loss: mean loss of each sequence, or None.
    """

    tokens: npt.NDArray[np.integer]
    tensors: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    segments: Sequence[Sequence[Segment]] = ()
    sample_index: Sequence[int] | None = None
    loss: Sequence[float] | None = None

    @property
    def size_bytes(self) -> int:
        """Memory that it holds, roughly."""
        return self.tokens.nbytes + sum(value.nbytes for value in self.tensors.values()) + 256 * len(self.segments)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Item:
    kind: AckKind
    global_step: int
    status: StepStatus | None
    microbatches: tuple[StagedMicrobatch, ...]
    records: tuple[StepRecord, ...]
    size_bytes: int


class Exporter:
    """Exports the rows of one dp_rank. The training thread calls it; a writer thread of its own does the work."""

    def __init__(
        self,
        writer: RankWriter,
        run: RunInfo,
        attempt: AttemptInfo,
        dp_rank: int,
        secret: bytes,
        options: ExporterOptions | None = None,
    ) -> None:
        self._writer, self._run, self._attempt, self._dp_rank, self._secret = writer, run, attempt, dp_rank, secret
        self._options = options or ExporterOptions()
        self._staged: list[StagedMicrobatch] = []
        self._committed_step = self._acknowledged_step = attempt.resume_step
        self._queue: deque[_Item] = deque()
        self._queue_bytes = 0
        self._late: list[StepRecord] = []
        self._wanted = False
        self._closing = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=f"kiseki-writer-r{dp_rank}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def committed_step(self) -> int:
        """The newest step that was committed."""
        return self._committed_step

    @property
    def acknowledged_step(self) -> int:
        """The newest step whose rows are durable."""
        return self._acknowledged_step

    @property
    def num_staged(self) -> int:
        """Micro-batches of the step that is under way; the next one's accumulation index."""
        return len(self._staged)

    def stage(self, microbatch: StagedMicrobatch) -> None:
        """Keep a micro-batch for the step under way. Raises RowError for a shape that is not the run's."""
        expected = self._run.sequence_length
        shape = microbatch.tokens.shape
        if len(shape) != 2 or shape[1] != expected:
            raise RowError(
                f"expected tokens of shape [micro-batch, {expected}], found {list(shape)}; the run was attached with "
                f"sequence_length={expected}"
            )
        for name, count in (("segments", len(microbatch.segments)), ("sample_index", _count(microbatch.sample_index))):
            if count not in (0, shape[0]):
                raise RowError(f"{name}: expected one for each of {shape[0]} sequences, found {count}")
        self._staged.append(microbatch)

    def discard_staged(self) -> None:
        """Forget the step under way: it was cancelled, and nothing of it was consumed."""
        self._staged.clear()

    def commit(
        self,
        global_step: int,
        *,
        status: StepStatus = StepStatus.APPLIED,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """End a step. Steps follow one another by 1 from the resume step. Raises InputError, ExportStopped."""
        self._check()
        if global_step != self._committed_step + 1:
            raise InputError(
                f"expected commit of step {self._committed_step + 1}, found {global_step}; a training that resumes gives "
                "the hook's state from its model checkpoint as resume="
            )
        staged, self._staged = tuple(self._staged), []
        size = sum(microbatch.size_bytes for microbatch in staged) + 1024
        records = () if metrics is None else (_metrics_record(global_step, metrics),)
        item = _Item(
            kind=AckKind.STEP, global_step=global_step, status=StepStatus(status), microbatches=staged,
            records=records, size_bytes=size,
        )  # fmt: skip
        self._committed_step = global_step
        self._put(item)

    def record(self, global_step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step that is already committed, as trainers give them that log every few steps."""
        self._check()
        with self._changed:
            self._late.append(_metrics_record(global_step, metrics))

    def checkpoint_barrier(self, global_step: int, timeout_s: float | None = None) -> None:
        """Return once all rows of steps ≤ global_step are durable. Raises ExportStopped, also after `timeout_s`."""
        if global_step > self._committed_step:
            raise InputError(f"step {global_step} is not committed; the newest one is {self._committed_step}")
        with self._changed:
            self._wanted = True
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: self._acknowledged_step >= global_step or self._error is not None, timeout_s
            )
        self._check()
        if not done:
            raise ExportStopped(
                f"steps {self._acknowledged_step + 1}–{global_step} were not durable after {timeout_s} s; the disk below "
                "the run directory is too slow or hangs"
            )

    def close(self) -> None:
        """Write what is committed, seal, stop the thread. Rows staged for a step that was never committed are dropped."""
        atexit.unregister(self.close)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self._check()

    def _check(self) -> None:
        error = self._error
        if error is None:
            return
        if isinstance(error, OSError):
            raise ExportStopped(
                f"the export of dp_rank {self._dp_rank} stopped after step {self._acknowledged_step}: {error}; "
                "free or repair the disk, then resume from the last model checkpoint"
            ) from error
        raise ExportStopped(
            f"the export of dp_rank {self._dp_rank} stopped after step {self._acknowledged_step}: {error}"
        ) from error

    def _put(self, item: _Item) -> None:
        options = self._options
        with self._changed:
            if self._has_room(item):
                self._enqueue(item)
                return
            if options.when_full == "drop":
                self._enqueue(_gap(item, "the queue was full and the exporter was told to drop"))
                return
            self._wanted = True
            self._changed.notify_all()
            room = self._changed.wait_for(
                lambda: self._has_room(item) or self._error is not None, options.block_timeout_s
            )
            if self._error is None and room:
                self._enqueue(item)
                return
            if self._error is None:
                self._error = TimeoutError(
                    f"the queue of {options.max_queue_bytes} bytes was full for {options.block_timeout_s} s"
                )
        self._check()

    def _has_room(self, item: _Item) -> bool:
        return not self._queue or self._queue_bytes + item.size_bytes <= self._options.max_queue_bytes

    def _enqueue(self, item: _Item) -> None:
        self._queue.append(item)
        self._queue_bytes += item.size_bytes
        if self._queue_bytes * 2 >= self._options.max_queue_bytes:
            self._wanted = True
        self._changed.notify_all()

    def _work(self) -> None:
        try:
            while True:
                items, closing = self._take()
                if items:
                    self._writer.append([self._frame(item) for item in items])
                    with self._changed:
                        self._acknowledged_step = max(self._acknowledged_step, *(item.global_step for item in items))
                        self._changed.notify_all()
                if closing:
                    self._writer.close()
                    return
        except Exception as error:  # noqa: BLE001  the thread's edge: handed to every later call
            self._writer.abandon()
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _take(self) -> tuple[list[_Item], bool]:
        """What is committed, after waiting up to `group_interval_s` for company unless somebody waits for it."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            deadline = time.monotonic() + self._options.group_interval_s
            while not (self._wanted or self._closing):
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            items = list(self._queue)
            self._queue.clear()
            self._queue_bytes = 0
            self._wanted = False
            closing = self._closing
            if self._late and (items or closing):
                step = items[-1].global_step if items else self._committed_step
                items.append(_note(step, tuple(self._late)))
                self._late = []
            self._changed.notify_all()
        return items, closing

    def _frame(self, item: _Item) -> Frame:
        rows = tuple(
            row for index, microbatch in enumerate(item.microbatches) for row in self._rows(item, index, microbatch)
        )
        return Frame(kind=item.kind, global_step=item.global_step, status=item.status, rows=rows, records=item.records)

    def _rows(self, item: _Item, microbatch_index: int, microbatch: StagedMicrobatch) -> list[Row]:
        tokens = self._checked_tokens(item.global_step, microbatch.tokens)
        return [self._row(item, microbatch_index, slot, tokens[slot], microbatch) for slot in range(tokens.shape[0])]

    def _checked_tokens(self, global_step: int, tokens: npt.NDArray[np.integer]) -> npt.NDArray[np.unsignedinteger]:
        if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) >= self._run.vocab_size):
            raise RowError(
                f"step {global_step}: expected token ids in [0, {self._run.vocab_size}), found "
                f"{int(tokens.min())} to {int(tokens.max())}; attach with the model's vocab_size"
            )
        return tokens.astype(np.dtype(self._run.token_dtype))

    def _row(
        self,
        item: _Item,
        microbatch_index: int,
        slot: int,
        tokens: npt.NDArray[np.unsignedinteger],
        microbatch: StagedMicrobatch,
    ) -> Row:
        address = SequenceAddress(
            run_id=self._run.run_id, attempt=self._attempt.attempt, global_step=item.global_step,
            dp_rank=self._dp_rank, microbatch=microbatch_index, slot=slot,
        )  # fmt: skip
        segments = tuple(microbatch.segments[slot]) if microbatch.segments else ()
        _check_segments(address, segments, len(tokens))
        tensors = tuple(
            encode_tensor(name, value[slot], tokens, segments) for name, value in sorted(microbatch.tensors.items())
        )
        sample_index = None if microbatch.sample_index is None else int(microbatch.sample_index[slot])
        return Row(
            address=address,
            tokens=tokens,
            segments=segments,
            tensors=tensors,
            sample_index=sample_index,
            status=item.status or StepStatus.APPLIED,
            loss=None if microbatch.loss is None else float(microbatch.loss[slot]),
            leaf=leaf_hash(self._secret, str(address), sample_index, tokens, segments, tensors),
        )


def _count(values: Sequence[int] | None) -> int:
    return 0 if values is None else len(values)


def _check_segments(address: SequenceAddress, segments: Sequence[Segment], num_tokens: int) -> None:
    position = 0
    for segment in segments:
        if segment.start < position or segment.length < 1 or segment.start + segment.length > num_tokens:
            raise RowError(
                f"{address}: segments must follow one another inside [0, {num_tokens}); found start {segment.start}, "
                f"length {segment.length} after position {position}"
            )
        position = segment.start + segment.length


def _metrics_record(global_step: int, metrics: Mapping[str, float]) -> StepRecord:
    try:
        values = {str(name): float(value) for name, value in metrics.items()}
    except (TypeError, ValueError) as error:
        raise KisekiError(f"metrics of step {global_step}: expected numbers, found {dict(metrics)!r}") from error
    return StepRecord(global_step=global_step, kind="metrics", unix_time_s=time.time(), values=values)


def _note(global_step: int, records: tuple[StepRecord, ...]) -> _Item:
    return _Item(
        kind=AckKind.NOTE, global_step=global_step, status=None, microbatches=(), records=records, size_bytes=0
    )


def _gap(item: _Item, reason: str) -> _Item:
    num_rows = sum(len(microbatch.tokens) for microbatch in item.microbatches)
    gap = StepRecord(
        global_step=item.global_step, kind="gap", unix_time_s=time.time(), values={"num_rows": num_rows}, text=reason
    )
    return _Item(
        kind=AckKind.STEP, global_step=item.global_step, status=item.status, microbatches=(),
        records=(*item.records, gap), size_bytes=1024,
    )  # fmt: skip
