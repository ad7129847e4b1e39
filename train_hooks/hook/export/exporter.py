"""The exporter of one writer rank: stage → commit → acknowledge. No torch in here.

- `stage` keeps a micro-batch (already cloned by the caller) for the step that is under way.
- `commit` ends the step: its micro-batches go to the writer thread with the step's status. It returns at once unless
  the queue is full; then it blocks, and after `block_timeout_s` stops the training with ExportStopped. The queue's
  bytes are those of all steps that are not acknowledged yet, so they bound the memory.
- The writer thread turns them into rows, hashes, writes and syncs them; one sync serves all steps that came meanwhile.
  What it has acknowledged is `acknowledged_step`. It is woken for the first step of a group, and for a queue half full;
  a wake costs the training thread more than all else that `commit` does.
- `checkpoint_barrier(step)` returns once every row of steps ≤ step is durable. Call it before a model checkpoint
  counts.
- An error of the writer thread is final: every later call raises it, so that training cannot go on unrecorded.
"""

import atexit
import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from train_hooks.documents import DocumentResolver
from train_hooks.export_format.errors import ExportStopped, InputError
from train_hooks.export_format.records import AttemptInfo, RowLoss, RunInfo, StepRecord, StepStatus
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.committed_step import (
    CommitRequest,
    CommittedStep,
    checked_metrics,
    losses_record,
    metrics_record,
    note_step,
    request_as_gap,
)
from train_hooks.hook.export.row_builder import RowBuilder
from train_hooks.hook.export.staging import DeferredMicrobatch, StagedMicrobatch, check_shapes

__all__ = ["Exporter", "ExporterOptions"]

_STEP_BYTES = 1024
_DROPPED_TEXT = "the queue was full and the exporter was told to drop"


@dataclass(frozen=True, kw_only=True, slots=True)
class ExporterOptions:
    """Limits of the queue and of group commit. One sync serves at most `group_bytes` of staged memory.

    max_step_bytes: what one step may stage before it is committed. A training that never commits stops there.
    max_fetched_bytes: copies of micro-batches that were fetched ahead of their forwards. Beyond it the oldest are set aside
    as skipped, and a forward that gets one of these is an error.
    """

    max_queue_bytes: int = 64 << 20
    block_timeout_s: float = 120.0
    group_interval_s: float = 1.0
    group_bytes: int = 16 << 20
    when_full: Literal["block", "drop"] = "block"
    roll_size_bytes: int = 1 << 30
    max_step_bytes: int = 2 << 30
    max_fetched_bytes: int = 256 << 20


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
        documents: DocumentResolver | None = None,
        *,
        mismatch_as_gap: bool = False,
        on_tokens: Callable[[int, npt.NDArray[np.integer]], None] | None = None,
    ) -> None:
        """mismatch_as_gap, on_tokens: as of `RowBuilder`."""
        self._writer, self._run, self._attempt, self._dp_rank = writer, run, attempt, dp_rank
        self._builder = RowBuilder(
            run, attempt, dp_rank, secret, documents=documents, mismatch_as_gap=mismatch_as_gap, on_tokens=on_tokens
        )
        self._options = options or ExporterOptions()
        self._staged: list[StagedMicrobatch | DeferredMicrobatch] = []
        self._staged_bytes = 0
        self._committed_step = self._acknowledged_step = attempt.resume_step
        self._queue: deque[CommitRequest] = deque()
        self._queue_bytes = 0
        self._later_records: list[StepRecord] = []
        self._steps_without_rows: set[int] = set()
        self._writer_idle = False
        self._flush_wanted = False
        self._closing = self._closed = False
        self._error: BaseException | None = None
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self._run_writer, name=f"kiseki-writer-r{dp_rank}", daemon=True)
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

    def stage(self, microbatch: StagedMicrobatch | DeferredMicrobatch) -> None:
        """Keep a micro-batch for the step under way. Raises RowError for a shape that is not the run's."""
        if isinstance(microbatch, StagedMicrobatch):
            check_shapes(microbatch, self._run)
        self._staged.append(microbatch)
        self._staged_bytes += microbatch.size_bytes
        if self._staged_bytes > self._options.max_step_bytes:
            raise ExportStopped(
                f"{len(self._staged)} micro-batches ({self._staged_bytes >> 20} MiB) were consumed after step "
                f"{self._committed_step} and not committed; call hook.commit(step) after each optimizer.step(), or raise "
                f"ExporterOptions(max_step_bytes=…), {self._options.max_step_bytes} now, if a step is as large"
            )

    def discard_staged(self) -> None:
        """Forget the step under way: it was cancelled, and nothing of it was consumed."""
        self._staged.clear()
        self._staged_bytes = 0

    def commit(
        self,
        global_step: int,
        *,
        status: StepStatus = StepStatus.APPLIED,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """End a step. Steps follow one another by 1 from the resume step. Raises InputError, ExportStopped.

        After an InputError nothing has happened: what was staged is still staged.
        """
        self.commit_checked(int(global_step), status, self.check_commit(global_step, metrics))

    def commit_checked(
        self, global_step: int, status: StepStatus, values: dict[str, float] | None, gap: str | None = None
    ) -> None:
        """End a step that `check_commit` found to be the next. gap: why it is to be written without its rows."""
        size_bytes = _STEP_BYTES
        for microbatch in self._staged if gap is None else ():
            size_bytes += microbatch.size_bytes
        status = status if type(status) is StepStatus else StepStatus(status)
        if gap is not None:
            self._steps_without_rows.add(global_step)
        step = CommitRequest(global_step, status, self._staged, values, time.time(), size_bytes)
        if gap is not None:
            step = request_as_gap(step, gap, size_bytes)
        self._staged = []
        self._staged_bytes = 0
        self._committed_step = global_step
        self._put(step)

    def check_commit(self, global_step: int, metrics: Mapping[str, float] | None) -> dict[str, float] | None:
        """The metrics as numbers. Raises InputError unless this step comes next, ExportStopped where none may come."""
        if self._error is not None or self._closing:
            self._check_open()
        if global_step != self._committed_step + 1:
            raise InputError(
                f"expected commit of step {self._committed_step + 1}, found {global_step}; a training that resumes gives "
                "the hook's state from its model checkpoint as resume="
            )
        return None if metrics is None else checked_metrics(global_step, metrics)

    def record(self, global_step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of a step that is already committed, as trainers give them that log every few steps."""
        self._check_open()
        self._expect_committed("metrics", global_step)
        record = metrics_record(int(global_step), checked_metrics(int(global_step), metrics), time.time())
        with self._changed:
            self._later_records.append(record)

    def record_losses(self, global_step: int, losses: Sequence[RowLoss]) -> None:
        """Losses of rows of a step that is already committed; of a step under way they belong to its micro-batches.

        A row gets its losses once. Those of a step whose rows were dropped have no row and are left out. Raises InputError
        for a step that this attempt has not committed.
        """
        self._check_open()
        self._expect_committed("losses", global_step)
        if global_step in self._steps_without_rows or not losses:
            return
        record = losses_record(int(global_step), losses, time.time())
        with self._changed:
            self._later_records.append(record)

    def _expect_committed(self, what: str, global_step: int) -> None:
        if not self._attempt.resume_step < global_step <= self._committed_step:
            raise InputError(
                f"{what} of step {global_step}: expected a step that this attempt committed, "
                f"{self._attempt.resume_step + 1} to {self._committed_step}"
            )

    def checkpoint_barrier(self, global_step: int, timeout_s: float | None = None) -> None:
        """Return once all rows of steps ≤ global_step are durable. Raises ExportStopped, also after `timeout_s`."""
        if global_step > self._committed_step:
            raise InputError(f"step {global_step} is not committed; the newest one is {self._committed_step}")
        with self._changed:
            if self._acknowledged_step < global_step:
                self._flush_wanted = True
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
        if os.getpid() != self._pid:  # a forked worker has the object but not the thread
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        atexit.unregister(self.close)
        self._check()
        never = self._staged and self._committed_step == self._attempt.resume_step and not self._closed
        self._closed = True
        if never and sys.exc_info()[0] is None:  # an error in the first step says itself why there is none
            raise ExportStopped(
                f"{len(self._staged)} micro-batches were consumed and no step was ever committed, so the export of dp_rank "
                f"{self._dp_rank} holds none of them; call hook.commit(step) after each optimizer.step()"
            )

    def _check_open(self) -> None:
        self._check()
        if self._closing:
            raise ExportStopped(f"the export of dp_rank {self._dp_rank} is closed; attach again to go on")

    def _check(self) -> None:
        error = self._error
        if error is None:
            return
        hint = "; free or repair the disk, then resume from the last model checkpoint" if _is_disk_error(error) else ""
        raise ExportStopped(
            f"the export of dp_rank {self._dp_rank} stopped after step {self._acknowledged_step}: "
            f"{error or type(error).__name__}{hint}"
        ) from error

    def _put(self, step: CommitRequest) -> None:
        options = self._options
        with self._lock:
            if self._has_room(step):
                self._enqueue(step)
                return
            if options.when_full == "drop":
                self._steps_without_rows.add(step.global_step)
                self._enqueue(request_as_gap(step, _DROPPED_TEXT, _STEP_BYTES))
                return
            self._flush_wanted = True
            self._changed.notify_all()
            room = self._changed.wait_for(
                lambda: self._has_room(step) or self._error is not None, options.block_timeout_s
            )
            if self._error is None and room:
                self._enqueue(step)
                return
            if self._error is None:
                self._error = TimeoutError(
                    f"the queue of {options.max_queue_bytes} bytes was full for {options.block_timeout_s} s"
                )
                self._changed.notify_all()
        self._check()

    def _has_room(self, step: CommitRequest) -> bool:
        return self._queue_bytes == 0 or self._queue_bytes + step.size_bytes <= self._options.max_queue_bytes

    def _enqueue(self, step: CommitRequest) -> None:
        self._queue.append(step)
        self._queue_bytes += step.size_bytes
        half_full = self._queue_bytes * 2 >= self._options.max_queue_bytes
        if self._writer_idle or (half_full and not self._flush_wanted):
            self._writer_idle = False
            self._flush_wanted = self._flush_wanted or half_full
            self._changed.notify_all()

    def _run_writer(self) -> None:
        try:
            closing = False
            while not closing:
                steps, closing = self._take_committed()
                while steps:
                    group = _first_group(steps, self._options.group_bytes)
                    self._writer.append([self._builder.frame(step) for step in group])
                    self._acknowledge(group)
            self._writer.close()
        except BaseException as error:  # noqa: BLE001  the thread's edge: handed to every later call
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()
            with contextlib.suppress(OSError):
                self._writer.abandon()

    def _acknowledge(self, group: Sequence[CommittedStep]) -> None:
        with self._changed:
            self._acknowledged_step = max(self._acknowledged_step, *(step.global_step for step in group))
            self._queue_bytes -= sum(step.size_bytes for step in group)
            self._changed.notify_all()

    def _take_committed(self) -> tuple[deque[CommittedStep], bool]:
        """What is committed, after waiting up to `group_interval_s` for company unless somebody waits for it."""
        with self._changed:
            self._writer_idle = not self._queue
            self._changed.wait_for(lambda: self._queue or self._closing)
            self._writer_idle = False
            deadline = time.monotonic() + self._options.group_interval_s
            while not (self._flush_wanted or self._closing):
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            committed, self._queue = self._queue, deque()
            self._flush_wanted = False
            closing = self._closing
            later: list[StepRecord] = []
            if self._later_records and (committed or closing):
                later, self._later_records = self._later_records, later
            newest = committed[-1].global_step if committed else self._committed_step
        steps = deque(step.step() for step in committed)
        if later:
            steps.append(note_step(newest, tuple(later)))
        return steps, closing


def _first_group(steps: deque[CommittedStep], max_bytes: int) -> list[CommittedStep]:
    """Take away the first steps, as many as one sync serves: what is written is not held any longer."""
    group = [steps.popleft()]
    size = group[0].size_bytes
    while steps and size + steps[0].size_bytes <= max_bytes:
        size += steps[0].size_bytes
        group.append(steps.popleft())
    return group


def _is_disk_error(error: BaseException) -> bool:
    return isinstance(error, OSError)
