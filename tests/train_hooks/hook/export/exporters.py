"""A writer that waits or fails on request, micro-batches for it, and what it wrote."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tests.support.example_exports import LENGTH
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Row, StepRecord
from train_hooks.export_format.writing.writer import Frame, RankWriter
from train_hooks.hook.export.exporter import Exporter
from train_hooks.hook.export.staging import StagedMicrobatch

Make = Callable[..., Exporter]


class SlowWriter(RankWriter):
    """A writer that waits for `go` at each append, and fails with `error` where there is one."""

    def __init__(self, *args: object, go: threading.Event, error: BaseException | None) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.go, self.error, self.appends = go, error, list[int]()

    def append(self, frames: Sequence[Frame]) -> None:
        assert self.go.wait(20)
        if self.error is not None:
            raise self.error
        self.appends.append(len(frames))
        super().append(frames)


def microbatch(value: int = 1, num_slots: int = 2, **more: object) -> StagedMicrobatch:
    return StagedMicrobatch(tokens=np.full((num_slots, LENGTH), value), **more)  # type: ignore[arg-type]


def go(exporter: Exporter) -> None:
    exporter.go.set()  # type: ignore[attr-defined]


def rows(run_dir: Path, attempt: int = 1) -> list[Row]:
    reader = RunReader(run_dir).attempt(attempt)
    return [row for frame in reader.frames(1, 10**9) for row in reader.rows(frame)]


def records(run_dir: Path) -> list[StepRecord]:
    return [record for _, record in RunReader(run_dir).attempt(1).step_records()]
