"""`kiseki index --follow`: publish new steps while training runs.

After each look the follower rests for `interval_s`, and for at least REST times as long as the look took, so that it
takes at most 1 / (1 + REST) of one core from its machine however large the run grows.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from indexer.build.update import IndexOptions, IndexReport, update_index
from train_hooks.export_format.errors import IncompleteError, RunError

__all__ = ["follow"]

REST = 3.0


def follow(
    run_dir: Path | str,
    options: IndexOptions | None = None,
    *,
    interval_s: float = 10.0,
    stop: threading.Event | None = None,
) -> Iterator[IndexReport]:
    """Yield a report for each generation that was published, until `stop` is set.

    A run directory that is not there yet, or has no committed step yet, is waited for. Raises what `update_index` raises.
    """
    stop = stop or threading.Event()
    while not stop.is_set():
        started = time.monotonic()
        try:
            report = update_index(run_dir, options)
        except IncompleteError:
            report = None
        except RunError:
            if Path(run_dir).exists() and (Path(run_dir) / "export" / "run.json").exists():
                raise
            report = None
        if report is not None and report.published:
            yield report
        stop.wait(max(interval_s, REST * (time.monotonic() - started)))
