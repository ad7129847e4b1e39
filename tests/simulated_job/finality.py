"""What was once final stays as it is: no final step is ever lost, or read with another frame.

`look` may be called at any time, in the midst of a write too, as a reader of a growing export would. It raises
nothing: the job that it looks at has places where it expects errors. What it finds is in `faults`.
"""

from collections.abc import Mapping
from pathlib import Path

from tests.simulated_job.memory_files import MemoryFileSystem
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.errors import KisekiError
from train_hooks.export_format.reading.reader import AttemptReader, RunReader, WriterLog
from train_hooks.export_format.writing.attempts import ResumeToken

__all__ = ["FinalSteps"]


class FinalSteps:
    """The frames of steps that a reader was told are final, by (attempt, dp_rank, step)."""

    def __init__(self, run_dir: Path, files: MemoryFileSystem) -> None:
        self.faults: list[str] = []
        self.num_looks = 0
        self._run_dir, self._files = run_dir, files
        self._frames: dict[int, dict[tuple[int, int], bytes]] = {}
        self._last: dict[int, int] = {}
        self._barriers: dict[int, int] = {}

    def covered(self, token: ResumeToken) -> None:
        """A barrier record was made durable: from now on the step is final, whatever happens."""
        self._barriers[token.attempt] = max(token.global_step, self._barriers.get(token.attempt, 0))

    def look(self) -> None:
        """Read what is final now, and compare it with what was."""
        if not self._files.exists(self._run_dir / "export" / "run.json"):
            return
        try:
            self.compare({each: each.writers() for each in RunReader(self._run_dir, self._files).attempts()})
        except KisekiError as error:
            self.faults.append(f"a reader refuses the run: {error}")

    def compare(self, attempts: Mapping[AttemptReader, Mapping[int, WriterLog]]) -> None:
        """Compare what was read of all attempts with what was final. Raises DamageError where a reader does."""
        self.num_looks += 1
        numbers = {attempt.info.attempt for attempt in attempts}
        for number in {number for number, known in self._frames.items() if known} - numbers:
            self.faults.append(f"attempt {number} had final steps and is lost")
        for attempt, writers in attempts.items():
            self._compare(attempt, dict(writers))

    def _compare(self, attempt: AttemptReader, writers: dict[int, WriterLog]) -> None:
        number = attempt.info.attempt
        final = attempt.final_step(writers) or attempt.info.resume_step
        if final < self._barriers.get(number, 0):
            self.faults.append(f"attempt {number}: step {self._barriers[number]} has a barrier, {final} is final")
        known = self._frames.setdefault(number, {})
        found = {(log.dp_rank, step): frame for log in writers.values() for step, frame in _frames(log)}
        for (dp_rank, step), frame in known.items():
            if found.get((dp_rank, step)) != frame:
                what = "another frame" if (dp_rank, step) in found else "no frame"
                self.faults.append(f"attempt {number}: step {step} of dp_rank {dp_rank} was final and has {what} now")
        for dp_rank in range(attempt.info.num_writers):
            for step in range(max(attempt.info.resume_step, self._last.get(number, 0)) + 1, final + 1):
                if (dp_rank, step) not in found:
                    self.faults.append(f"attempt {number}: {final} is final, dp_rank {dp_rank} lacks step {step}")
                else:
                    known[dp_rank, step] = found[dp_rank, step]
        self._last[number] = max(final, self._last.get(number, 0))


def _frames(log: WriterLog) -> list[tuple[int, bytes]]:
    found = []
    for file in log.files:
        records = file.acks.records[file.acks.indices_of(AckKind.STEP)]
        steps, hashes = records["global_step"].tolist(), records["frame_sha256"]
        found += [(step, hashes[index].tobytes()) for index, step in enumerate(steps)]
    return found
