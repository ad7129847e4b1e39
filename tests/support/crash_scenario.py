"""One scripted job that passes every kind of operation, and what fails in it at a chosen one.

Run creation; attempt 1: two ranks, files that roll, model checkpoints with their barrier records, a crash; attempt 2:
resumes, late metrics, clean close; then repair and compaction. After a fault the job does what a training does: it stops,
and the next attempt resumes from the newest model checkpoint. A reader looks at the files before the operations that
follow the fault, and what was final once must stay as it is.
"""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.simulated_job.invariants import check, check_second_reader, check_verified, finish
from tests.simulated_job.job import RUN_DIR, Job, Rank
from tests.simulated_job.memory_files import Killed
from train_hooks.export_format.errors import KisekiError
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import StepStatus
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.upkeep.repair import repair

__all__ = ["MODES", "Fault", "Scripted", "failure_of", "operations", "play_fault"]

LOOKS = 3
MODES = ("EIO", "ENOSPC", "EIO for ever", "ENOSPC for ever", "kill", "power loss")


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at which operation that changes something, counted from 1."""

    at: int
    mode: str
    seed: int = 0


class Scripted(Job):
    """The scripted job. `names` lists the operations that it did."""

    def __init__(self, fault: Fault | None, seed: int = 0) -> None:
        super().__init__(seed)
        self.names: list[str] = []
        self._fault = fault
        self._alive: list[Rank] = []
        self.files.before = self._before

    def play(self) -> None:
        """All phases; a fault ends the one that it falls into."""
        for phase in (self._first_attempt, self._second_attempt, self._second_attempt, self._repair, self._compact):
            try:
                phase()
            except OSError:
                self._disk_works_again()
            except Killed:
                self._die()
            for rank in self._alive:
                rank.writer.abandon()
            self._alive = []
            check(self)
        self.files.before = None

    def _before(self, name: str, path: Path) -> None:
        self.names.append(f"{name} {path.name}")
        fault = self._fault
        if fault is not None and 0 <= len(self.names) - fault.at <= LOOKS:
            self.final.look()
        if fault is None or len(self.names) < fault.at or (len(self.names) > fault.at and "for ever" not in fault.mode):
            return
        if fault.mode in ("kill", "power loss"):
            raise Killed
        code = errno.EIO if fault.mode.startswith("EIO") else errno.ENOSPC
        raise OSError(code, f"injected: {fault.mode}", str(path))

    def _disk_works_again(self) -> None:
        if self._fault is not None and "for ever" in self._fault.mode:
            self._fault = None

    def _die(self) -> None:
        if self._fault is not None and self._fault.mode == "power loss":
            for rank in self._alive:
                rank.writer.abandon()
            self.files.crash()

    def _attempt(self, num_steps: int, every: Callable[[int], bool]) -> list[Rank]:
        ranks = self.start(num_writers=2, resume=self.checkpoints[-1] if self.checkpoints else None, roll_size_bytes=1)
        self._alive = ranks
        first = ranks[0].info.resume_step + 1
        for step in range(first, first + num_steps):
            for rank in ranks:
                self.step(rank, step, num_microbatches=1, num_slots=1, status=StepStatus.APPLIED)
            if every(step):
                self.checkpoint(ranks, step)
        return ranks

    def _first_attempt(self) -> None:
        self._attempt(5, lambda step: step % 2 == 0)

    def _second_attempt(self) -> None:
        for rank in self._attempt(3, lambda step: step % 2 == 1):
            rank.flush()
            rank.writer.close()

    def _repair(self) -> None:
        repair(RUN_DIR, file_system=self.files, assume_dead=True)

    def _compact(self) -> None:
        compact(RunReader(RUN_DIR, self.files), level=1)


def operations() -> list[str]:
    """What the job does where nothing fails."""
    job = Scripted(None)
    job.play()
    return job.names


def play_fault(fault: Fault) -> None:
    """The job with one fault, all invariants, and then repair and compaction with none. Raises AssertionError."""
    job = Scripted(fault, fault.seed)
    job.play()
    if fault.at % 2:
        check_verified(job)
    finish(job, crash=fault.at % 2 == 0, again=fault.at % 4 == 0, compacted=fault.at % 5 == 0)
    if fault.at % 10 == MODES.index(fault.mode):
        check_second_reader(job)


def failure_of(fault: Fault) -> str | None:
    """What a fault broke, or None."""
    try:
        play_fault(fault)
    except (AssertionError, KisekiError) as error:
        return f"{fault}: {error}"
    return None
