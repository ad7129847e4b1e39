"""The committed steps of one lineage, in the order of training, and their verified rows. One step is read at a time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from train_hooks.export_format.acknowledgement import Ack
from train_hooks.export_format.errors import DamageError, IncompleteError, InputError
from train_hooks.export_format.leaf import merkle_root
from train_hooks.export_format.lineage import StepInterval, canonical_attempt, lineage
from train_hooks.export_format.reading.chain import SegmentFile
from train_hooks.export_format.reading.reader import AttemptReader, RunReader, StepFrame
from train_hooks.export_format.reading.summaries import summarize
from train_hooks.export_format.records import Row
from train_hooks.export_format.removal import leaf_of_row, removal_of

__all__ = ["LazyFrame", "LineageReader", "Verify"]

Verify = Literal["leaf", "frame"]


@dataclass(frozen=True, slots=True)
class LazyFrame:
    """One writer's part of a step, not read yet."""

    attempt: AttemptReader
    file: SegmentFile
    ack: Ack

    def read(self) -> StepFrame:
        """The frame, hashed before it is parsed."""
        return self.attempt.frame(self.file, self.ack)


class LineageReader:
    """The committed steps of one lineage, and their rows."""

    def __init__(
        self, run_dir: Path, attempt: int | None, first_step: int, last_step: int | None, verify: Verify
    ) -> None:
        if verify not in ("leaf", "frame"):
            raise InputError(f"verify: expected 'leaf' or 'frame', found {verify!r}")
        self._run = RunReader(run_dir)
        self._attempt, self._first_step, self._last_step = attempt, first_step, last_step
        self._secret = self._run.secret() if verify == "leaf" else None

    def steps(self) -> Iterator[tuple[AttemptReader, int, dict[int, LazyFrame]]]:
        """(attempt, step, dp_rank → frame) in the order of training, of what is committed now."""
        for interval in self._intervals():
            attempt = self._run.attempt(interval.attempt)
            yield from self._steps_of(attempt, interval)

    def _intervals(self) -> list[StepInterval]:
        attempts = {reader.info.attempt: reader for reader in self._run.attempts()}
        chosen = self._attempt
        if chosen is None:
            newest = {number: max(summarize(reader).committed, default=None) for number, reader in attempts.items()}
            chosen = canonical_attempt(newest)
        if chosen is None:
            return []
        return lineage([reader.info for reader in attempts.values()], chosen, self._last_step)

    def _steps_of(
        self, attempt: AttemptReader, interval: StepInterval
    ) -> Iterator[tuple[AttemptReader, int, dict[int, LazyFrame]]]:
        frames_of_step: dict[int, dict[int, LazyFrame]] = {}
        for dp_rank, log in attempt.writers().items():
            for file, ack in log.steps():
                frames_of_step.setdefault(ack.global_step, {})[dp_rank] = LazyFrame(attempt, file, ack)
        whole = {step for step, frames in frames_of_step.items() if len(frames) == attempt.info.num_writers}
        last = max(whole, default=interval.first_step - 1) if interval.last_step is None else interval.last_step
        for step in range(max(self._first_step, interval.first_step), last + 1):
            if step not in whole:
                raise IncompleteError(
                    f"attempt {interval.attempt}: step {step} is not acknowledged by all of {attempt.info.num_writers} "
                    "writers; replay an earlier last_step, or wait for it"
                )
            yield attempt, step, frames_of_step[step]

    def rows(self, attempt: AttemptReader, frames: Iterable[LazyFrame]) -> list[Row]:
        """The rows of these frames, verified, by dp_rank, micro-batch and slot."""
        found: list[Row] = []
        for lazy_frame in frames:
            frame = lazy_frame.read()
            for record in frame.records:
                if record.kind == "gap":
                    raise IncompleteError(
                        f"attempt {attempt.info.attempt}: step {record.global_step} of dp_rank {frame.dp_rank} has a gap "
                        f"({record.text}); it cannot be replayed"
                    )
            rows = attempt.rows(frame)
            if self._secret is not None:
                self._verify(rows, frame)
            for row in rows:
                if removal_of(row) is not None:
                    raise IncompleteError(
                        f"{row.address}: tokens of it were removed from the export (a takedown); it cannot be replayed"
                    )
            found.extend(rows)
        return found

    def _verify(self, rows: Sequence[Row], frame: StepFrame) -> None:
        assert self._secret is not None
        for row in rows:
            if leaf_of_row(self._secret, row) != row.leaf:
                raise DamageError(f"{row.address}: the row does not match its leaf; restore the export from a copy")
        if merkle_root([row.leaf for row in rows]) != frame.ack.root:
            raise DamageError(
                f"step {frame.ack.global_step} of dp_rank {frame.dp_rank}: the rows do not match the root hash that was "
                "acknowledged; restore the export from a copy"
            )
