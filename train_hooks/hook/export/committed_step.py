"""A committed step on its way to the writer: as the training thread leaves it, and as the row builder takes it."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.errors import RowError
from train_hooks.export_format.records import RowLoss, StepRecord, StepStatus
from train_hooks.hook.export.staging import Staged, StagedMicrobatch

__all__ = [
    "CommitRequest",
    "CommittedStep",
    "as_gap",
    "checked_metrics",
    "losses_record",
    "metrics_record",
    "note_step",
    "request_as_gap",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class CommittedStep:
    """A committed step on its way to the disk, or (kind NOTE) step records alone.

    dropped: micro-batches that are not written, since the step is a gap.
    """

    kind: AckKind
    global_step: int
    status: StepStatus | None
    microbatches: tuple[Staged, ...]
    records: tuple[StepRecord, ...]
    size_bytes: int
    dropped: tuple[Staged, ...] = ()


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


def note_step(global_step: int, records: tuple[StepRecord, ...]) -> CommittedStep:
    """Step records alone, after step `global_step`."""
    return CommittedStep(
        kind=AckKind.NOTE, global_step=global_step, status=None, microbatches=(), records=records, size_bytes=0
    )


def as_gap(step: CommittedStep, reason: str, num_rows: int | None = None) -> CommittedStep:
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
        """As the row builder takes it."""
        records = () if self.metrics is None else (metrics_record(self.global_step, self.metrics, self.unix_time_s),)
        step = CommittedStep(
            kind=AckKind.STEP, global_step=self.global_step, status=self.status,
            microbatches=tuple(self.microbatches), records=records, size_bytes=self.size_bytes,
        )  # fmt: skip
        return step if self.gap is None else as_gap(step, self.gap, self.gap_rows)


def request_as_gap(step: CommitRequest, reason: str, size_bytes: int) -> CommitRequest:
    """The same step as a gap, which holds no memory of its rows any more."""
    kept: list[Staged] = []
    for staged in step.microbatches:
        if not isinstance(staged, StagedMicrobatch) and staged.must_resolve:
            kept.append(staged)
        elif staged.release is not None:
            staged.release()
    num_rows = sum(microbatch.num_slots for microbatch in step.microbatches)
    return step._replace(microbatches=kept, size_bytes=size_bytes, gap=reason, gap_rows=num_rows)
