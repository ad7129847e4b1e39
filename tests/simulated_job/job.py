"""A simulated training job: ranks, prefetch, accumulation, crashes, rollbacks, resizes, skips, zombies, full disks.

Everything below the loop is the real code: runs and attempts, row builder, writer, reader, verification, repair and
compaction. One seed is one job, always the same.
"""

import errno
import random
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from tests.simulated_job.content import (
    LENGTH,
    VOCABULARY,
    FedRow,
    fed_rows,
    fetch,
    late_loss,
    some_defaults,
)
from tests.simulated_job.finality import FinalSteps
from tests.simulated_job.memory_files import MemoryFileSystem
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.barriers import write_barrier
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import AttemptInfo, RowLoss, RunInfo, StepRecord, StepStatus
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.committed_step import CommittedStep, as_gap, losses_record, note_step
from train_hooks.hook.export.row_builder import RowBuilder
from train_hooks.hook.export.staging import StagedMicrobatch

__all__ = ["LENGTH", "RUN_DIR", "FedRow", "Job", "Rank"]

RUN_DIR = Path("/runs/job")
_STATUSES = [StepStatus.APPLIED] * 8 + [StepStatus.SKIPPED_UPDATE, StepStatus.SKIPPED_DATA]
LateKey = tuple[int, int, int]


@dataclass(eq=False, slots=True)
class Rank:
    """One writer rank of one attempt. `fed`: step → rows, for committed steps; a gap has none.

    late: losses that came late, by (step, micro-batch, slot); num_late: how many of them are acknowledged, in the order
    in which they came. without_loss: rows that have none yet.
    """

    info: AttemptInfo
    dp_rank: int
    writer: RankWriter
    builder: RowBuilder
    fed: dict[int, tuple[FedRow, ...]] = field(default_factory=dict)
    queue: list[CommittedStep] = field(default_factory=list)
    acknowledged: int = 0
    late: dict[LateKey, RowLoss] = field(default_factory=dict)
    num_late: int = 0
    without_loss: list[tuple[int, FedRow]] = field(default_factory=list)
    prefetched: deque[StagedMicrobatch] = field(default_factory=deque)

    def flush(self) -> None:
        """Acknowledge what is committed."""
        if self.queue:
            self.writer.append([self.builder.frame(step) for step in self.queue])
            self.acknowledged = max(self.acknowledged, self.queue[-1].global_step)
            self.num_late = len(self.late)
            self.queue.clear()


class Job:
    """One job. `run` plays it; `ranks` and `checkpoints` are what the job remembers, the file system what is left."""

    spec = RunSpec(sequence_length=LENGTH, vocab_size=VOCABULARY, run_id="job", config={"seed": 1})

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.files = MemoryFileSystem(seed)
        self.files.make_directory(RUN_DIR.parent)
        self.files.sync_directory(Path("/"))
        self.ranks: list[Rank] = []
        self.zombies: list[Rank] = []
        self.checkpoints: list[ResumeToken] = []
        self.compared: set[object] = set()
        self.final = FinalSteps(RUN_DIR, self.files)
        self.num_faults = self.num_crashes = 0
        self._sample = 0
        self._statuses: dict[tuple[int, int], StepStatus] = {}

    def attempt(self) -> None:
        """One attempt, from its claim to its end, whatever that is. OSError ends it as ExportStopped would."""
        self._arm()
        ranks: list[Rank] = []
        try:
            ranks = self.start(num_writers=self.rng.choice([1, 2, 2, 3]), resume=self._resume())
            self._train(ranks)
        except OSError:
            self.num_faults += 1
        self.files.before = None
        self._end(ranks)

    def _arm(self) -> None:
        """With some luck, the disk fails at a later operation: once, or from then on. A reader looks before another."""
        at, for_ever = self.rng.randint(1, 60), self.rng.random() < 0.5
        at = at if self.rng.random() < 0.5 else 1 << 60
        code = self.rng.choice([errno.EIO, errno.ENOSPC])
        look_at = self.rng.randint(1, 120)
        count = 0

        def before(name: str, path: Path) -> None:
            nonlocal count
            count += 1
            if count == look_at:
                self.final.look()
            if count == at or (for_ever and count > at):
                raise OSError(code, f"injected at {name}", str(path))

        self.files.before = before

    def start(self, *, num_writers: int, resume: ResumeToken | None, roll_size_bytes: int | None = None) -> list[Rank]:
        """A new attempt and its writers; each that was made is remembered, also where a later one fails."""
        run = open_or_create_run(self.files, RUN_DIR, self.spec)
        info = claim_attempt(
            self.files, RUN_DIR, run, num_writers=num_writers, resume=resume, config={}, clock=lambda: 0.0,
            defaults=some_defaults(self.rng),
        )  # fmt: skip
        secret = RunReader(RUN_DIR, self.files).secret()
        ranks = []
        for dp_rank in range(num_writers):
            rank = self._rank(
                run, info, dp_rank, secret, roll_size_bytes or self.rng.choice([1, 4000, 1 << 20, 1 << 20])
            )
            ranks.append(rank)
            self.ranks.append(rank)
        return ranks

    def _resume(self) -> ResumeToken | None:
        if not self.checkpoints:
            return None
        return self.checkpoints[-1] if self.rng.random() < 0.7 else self.rng.choice([None, *self.checkpoints[-3:]])

    def _rank(self, run: RunInfo, info: AttemptInfo, dp_rank: int, secret: bytes, roll_size_bytes: int) -> Rank:
        directory = ExportPaths(RUN_DIR).attempt_dir(info.attempt)
        writer = RankWriter(
            self.files, directory, run, info, dp_rank, roll_size_bytes=roll_size_bytes, clock=lambda: 0.0
        )
        builder = RowBuilder(run, info, dp_rank, secret, pause_s=0.0)
        return Rank(info=info, dp_rank=dp_rank, writer=writer, builder=builder, acknowledged=info.resume_step)

    def _train(self, ranks: list[Rank]) -> None:
        step = ranks[0].info.resume_step
        alive = list(ranks)
        for _ in range(self.rng.randint(0, 6)):
            step += 1
            num_microbatches, num_slots = self.rng.randint(1, 2), self.rng.randint(1, 2)
            status = self._statuses[ranks[0].info.attempt, step] = self.rng.choice(_STATUSES)
            for rank in alive:
                self.step(rank, step, num_microbatches, num_slots, status)
            self._zombies_write()
            if len(alive) < len(ranks) and self.rng.random() < 0.5:
                return  # the others notice that one is dead
            if len(alive) > 1 and self.rng.random() < 0.05:
                alive.remove(self.rng.choice(alive))  # killed, or hung: it writes no more
            for rank in alive:
                if self.rng.random() < 0.6:
                    rank.flush()
            if len(alive) == len(ranks) and self.rng.random() < 0.4:
                self.checkpoint(ranks, step)

    def checkpoint(self, ranks: list[Rank], step: int) -> None:
        """A model checkpoint, behind a barrier on all ranks and its record. A trainer tries a failed record again."""
        for rank in ranks:
            rank.flush()
        info = ranks[0].info
        try:
            self._record_barrier(info, step)
        except OSError:
            self._record_barrier(info, step)
        token = ResumeToken(run_id=info.run_id, attempt=info.attempt, global_step=step)
        self.final.covered(token)
        self.checkpoints.append(token)

    def _record_barrier(self, info: AttemptInfo, step: int) -> None:
        write_barrier(self.files, ExportPaths(RUN_DIR), info, step, clock=lambda: 0.0)

    def step(self, rank: Rank, step: int, num_microbatches: int, num_slots: int, status: StepStatus) -> None:
        """One rank consumes and commits one step."""
        consumed = []
        for _ in range(num_microbatches):
            while len(rank.prefetched) < 2 or rank.prefetched[0].num_slots != num_slots:
                if rank.prefetched and rank.prefetched[0].num_slots != num_slots:
                    rank.prefetched.popleft()  # another shape: the loader drops what it fetched
                    continue
                rank.prefetched.append(self._fetch(num_slots))
            consumed.append(rank.prefetched.popleft())
        committed = CommittedStep(
            kind=AckKind.STEP, global_step=step, status=status, microbatches=tuple(consumed),
            records=self._metrics(step), size_bytes=0,
        )  # fmt: skip
        if self.rng.random() < 0.05:
            rank.fed[step] = ()
            rank.queue.append(as_gap(committed, "simulated"))
            return
        rank.fed[step] = fed_rows(consumed, status, rank.info)
        rank.without_loss += [(step, row) for row in rank.fed[step] if not any((row.loss, *row.segment_losses))]
        rank.queue.append(committed)
        if self.rng.random() < 0.2:
            records = (*self._metrics(step), *self._late_losses(rank))
            rank.queue.append(note_step(step, records))

    def _fetch(self, num_slots: int) -> StagedMicrobatch:
        first = self._sample
        self._sample += num_slots
        return fetch(self.rng, num_slots, first)

    def _late_losses(self, rank: Rank) -> tuple[StepRecord, ...]:
        """Losses of rows of an earlier step, or of this one, which have none yet."""
        if not rank.without_loss or self.rng.random() < 0.4:
            return ()
        step = self.rng.choice(rank.without_loss)[0]
        rows = [late_loss(self.rng, row) for of, row in rank.without_loss if of == step]
        rank.without_loss = [item for item in rank.without_loss if item[0] != step]
        rank.late.update({(step, row.microbatch, row.slot): row for row in rows})
        return (losses_record(step, rows, 0.0),)

    def _metrics(self, step: int) -> tuple[StepRecord, ...]:
        if self.rng.random() < 0.5:
            return ()
        return (StepRecord(global_step=step, kind="metrics", unix_time_s=0.0, values={"loss": self.rng.random()}),)

    def _zombies_write(self) -> None:
        for zombie in self.zombies:
            if self.rng.random() < 0.5:
                try:
                    step = max([zombie.info.resume_step, *zombie.fed]) + 1
                    self.step(zombie, step, 1, 1, self._statuses.get((zombie.info.attempt, step), StepStatus.APPLIED))
                    zombie.flush()
                except OSError:
                    zombie.writer.abandon()
                    self.zombies.remove(zombie)
                    return

    def _end(self, ranks: list[Rank]) -> None:
        end = self.rng.random()
        if end < 0.35:  # power loss
            self.num_crashes += 1
            for rank in [*ranks, *self.zombies]:
                rank.writer.abandon()
            self.zombies.clear()
            self.files.crash()
        elif end < 0.55 and ranks:  # the scheduler believes them dead
            self.zombies += ranks
        else:
            for rank in ranks:
                self._stop(rank, by_itself=end < 0.8)

    def _stop(self, rank: Rank, *, by_itself: bool) -> None:
        if by_itself and (not rank.queue or self.rng.random() < 0.7):
            try:
                rank.flush()
                rank.writer.close()
            except (OSError, AssertionError):
                rank.writer.abandon()
        else:
            rank.writer.abandon()
