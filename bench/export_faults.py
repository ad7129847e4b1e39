"""Fault points of the exporter, all of them, and real `kill -9`.

    python bench/export_faults.py                      every operation × every mode, in memory (≥ 2,000 points)
    python bench/export_faults.py --kill 200           a real process on a real disk, killed at 200 operations
    python bench/export_faults.py --seeds 3            the first one with three seeds of what a power loss forgets

In memory: EIO and ENOSPC once or from then on, death of the process, loss of power, at each write, datasync, create,
rename, remove, mkdir and directory sync of the scripted job in `tests/support/crash_scenario.py`. On disk: a child process
writes an export, says on a pipe which steps are acknowledged, and kills itself at the given operation. Then the parent reads:
each acknowledged step must be there as it was fed, `verify` must find no damage, and `repair` must make it whole.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from bench.support.history import Figures, bench_options, recorded
from tests.support.crash_scenario import MODES, Fault, failure_of, operations
from tests.support.example_exports import begin_run, committed_step
from train_hooks.export_format.filesystem import AppendFile, OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.upkeep.repair import repair
from train_hooks.export_format.verify.findings import Severity
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.attempts import claim_attempt
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.row_builder import RowBuilder
from train_hooks.hook.export.staging import StagedMicrobatch


def in_memory(num_seeds: int, jobs: int, figures: Figures) -> int:
    """All points in memory; the number of failures."""
    num_operations = len(operations())
    faults = [
        Fault(at, mode, seed) for seed in range(num_seeds) for at in range(1, num_operations + 1) for mode in MODES
    ]
    began = time.monotonic()
    with ProcessPoolExecutor(jobs) as pool:
        failures = [failure for failure in pool.map(failure_of, faults, chunksize=50) if failure]
    figures.add("fault points in memory", len(faults))
    figures.add("failures", len(failures))
    figures.add("time", time.monotonic() - began, "s")
    print(f"in memory: {num_operations} operations, {len(faults)} fault points, {len(failures)} failures, "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    for failure in failures[:5]:
        print(failure)
    return len(failures)


class KillingFileSystem(OsFileSystem):
    """Kills its process at an operation."""

    def __init__(self, at: int) -> None:
        self._left = at

    def count(self) -> None:
        """One operation."""
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def create(self, path: Path, mode: int = 0o644) -> AppendFile:
        self.count()
        return _KillingFile(super().create(path, mode), self)

    def make_directory(self, path: Path) -> None:
        self.count()
        super().make_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        self.count()
        super().rename(source, target)

    def sync_directory(self, path: Path) -> None:
        self.count()
        super().sync_directory(path)


class _KillingFile:
    def __init__(self, file: AppendFile, owner: KillingFileSystem) -> None:
        self._file, self._owner = file, owner

    def write(self, data: bytes) -> None:
        self._file.write(data[: len(data) // 2])
        self._owner.count()
        self._file.write(data[len(data) // 2 :])

    def datasync(self) -> None:
        self._owner.count()
        self._file.datasync()

    def close(self) -> None:
        self._file.close()


def child(run_dir: Path, at: int) -> None:
    """One attempt of two writers over ten steps, which says what is acknowledged."""
    files = KillingFileSystem(at)
    run = begin_run(run_dir, file_system=files)
    info = claim_attempt(files, run_dir, run, num_writers=2, resume=None, config={})
    directory = ExportPaths(run_dir).attempt_dir(info.attempt)
    writers = [RankWriter(files, directory, run, info, rank, roll_size_bytes=9000) for rank in range(2)]
    builders = [RowBuilder(run, info, rank, RunReader(run_dir).secret()) for rank in range(2)]
    for step in range(1, 11):
        for rank in range(2):
            writers[rank].append([builders[rank].frame(committed_step(step, rank))])
            print(step, rank, flush=True)
    for writer in writers:
        writer.close()
    print("done", flush=True)


def killed(run_dir: Path, at: int) -> str | None:
    """Kill a child at an operation and look at what is left; what broke, or None."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", str(run_dir), "--at", str(at)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, -signal.SIGKILL):
        return f"the child failed: {done.stderr[-500:]}"
    said = [tuple(map(int, line.split())) for line in done.stdout.splitlines() if line != "done"]
    if not (run_dir / "export" / "run.json").exists():
        return "the run is gone" if said else None
    for _ in range(2):
        report = verify(run_dir)
        if report.of(Severity.DAMAGED):
            return f"damage: {report.of(Severity.DAMAGED)[0]}"
        found = read_steps(run_dir)
        for step, rank in said:
            expected = [
                row.tolist()
                for microbatch in committed_step(step, rank).microbatches
                if isinstance(microbatch, StagedMicrobatch)
                for row in microbatch.tokens
            ]
            if found.get((step, rank)) != expected:
                return f"step {step} of dp_rank {rank} was acknowledged and is not there"
        repair(run_dir)
    return None if not said or not verify(run_dir).of(Severity.DAMAGED) else "repair did damage"


def read_steps(run_dir: Path) -> dict[tuple[int, int], list[list[int]]]:
    """(step, dp_rank) → the tokens of its rows."""
    found: dict[tuple[int, int], list[list[int]]] = {}
    for attempt in RunReader(run_dir).attempts():
        for frame in attempt.frames(1, 99):
            key = (frame.ack.global_step, frame.dp_rank)
            assert key not in found, f"step {key} is there twice"
            found[key] = [row.tokens.tolist() for row in attempt.rows(frame)]
    return found


def on_disk(num: int, figures: Figures) -> int:
    """`num` real kills; the number of failures."""
    began, failures = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as directory:
        for number in range(num):
            run_dir = Path(directory) / f"run{number}"
            failure = killed(run_dir, 1 + number * 240 // num)
            if failure is not None:
                failures += 1
                print(f"killed at operation {1 + number * 240 // num}: {failure}")
            shutil.rmtree(run_dir, ignore_errors=True)
    figures.add("processes killed", num)
    figures.add("failures", failures)
    figures.add("time", time.monotonic() - began, "s")
    print(f"on disk: {num} processes killed, {failures} failures, {time.monotonic() - began:.0f} s")
    return failures


def main() -> int:
    """Exit code 1 where something broke."""
    parser = bench_options(__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--at", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child(options.child, options.at)
        return 0
    with recorded("export_faults", options) as figures:
        failures = on_disk(options.kill, figures) if options.kill else in_memory(options.seeds, options.jobs, figures)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
