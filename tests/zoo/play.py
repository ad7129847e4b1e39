"""A loop is run, and its record judged."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.zoo.job import Job
from tests.zoo.judge import Record, differences, read_record
from tests.zoo.log import ForwardLog
from tests.zoo.table import Loop
from train_hooks.export_format.errors import ExportStopped, InputError, KisekiError

__all__ = ["Outcome", "play"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a loop. error: with which the hook stopped it; silent: in what its record is silently wrong."""

    error: KisekiError | None
    silent: tuple[str, ...]
    num_steps: int
    num_forwards: int

    @property
    def verdict(self) -> str:
        """`exact`, `refused` or `silent`."""
        return "silent" if self.silent else "exact" if self.error is None else "refused"

    def __str__(self) -> str:
        return "\n".join([self.verdict, *self.silent, *([] if self.error is None else [repr(self.error)])])


def play(loop: Loop, directory: Path) -> Outcome:
    """Run the loop with run directories in `directory`, and read them back."""
    job = Job(directory)
    error = None
    try:
        loop.train(job)
    except KisekiError as found:
        error = found
    finally:
        at_close = job.close()
    error = error or at_close
    records = {run: read_record(directory / run, log.token_names) for run, log in job.logs.items()}
    silent = [
        f"{run}: {what}"
        for run, log in job.logs.items()
        for what in (*differences(records[run], 0, log, loop), *_progress(records[run], log, error))
    ]
    return Outcome(
        error=error,
        silent=tuple(silent),
        num_steps=sum(len(record.steps) for record in records.values()),
        num_forwards=sum(log.num_forwards for log in job.logs.values()),
    )


def _progress(record: Record, log: ForwardLog, error: KisekiError | None) -> list[str]:
    """Every step is acknowledged, or an error says which is not."""
    missing = [step for step in log.steps if step not in record.steps]
    if error is None:
        return [f"steps {missing} are not acknowledged, and no error says so"] if missing else []
    if not isinstance(error, ExportStopped | InputError):
        return [f"it stopped with {type(error).__name__}"]
    named = [int(number) + bool(after) for after, number in re.findall(r"\b(after )?step (\d+)", str(error))]
    if isinstance(error, ExportStopped) and not named:
        return [f"the error names no step: {error}"]
    return [f"the error names step {named[0]}, which is acknowledged"] if named and named[0] in record.steps else []
