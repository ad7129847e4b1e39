"""A whole `kiseki index` of a run with one job and with several: wall time, CPU time, ratio.

    python bench/index_jobs.py RUN [--jobs 2] [--shard-tokens 64000000] [--repeats 2]

RUN's export is read, its index stays as it is: each build goes to a directory of its own beside a link to the export. A run of
some ten million tokens shows what jobs are worth; `python bench/fulltext.py --dir DIR` makes one. Each build is a process of
its own, as the command is, with all that it starts. The better of the repeats counts.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.support.history import bench_options, recorded

ROOT = Path(__file__).resolve().parents[1]


def build(run: Path, jobs: int, shard_tokens: int) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of one build."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "export").symlink_to((run / "export").resolve())
        command = [sys.executable, "-c", "from ui.cli import main; main()", "index", scratch]
        before, started = cpu_s(), time.perf_counter()
        subprocess.run(
            [*command, "--jobs", str(jobs), "--shard-tokens", str(shard_tokens)],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT,
        )  # fmt: skip
        return time.perf_counter() - started, cpu_s() - before


def cpu_s() -> float:
    """CPU-seconds of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Run the benchmark."""
    parser = bench_options(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--shard-tokens", type=int, default=64_000_000)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{'jobs':>6}{'wall s':>10}{'CPU s':>10}{'ratio':>8}", flush=True)
    first = None
    with recorded("index_jobs", arguments) as figures:
        for jobs in (1, arguments.jobs):
            wall, cpu = min(build(arguments.run, jobs, arguments.shard_tokens) for _ in range(arguments.repeats))
            first = first or wall
            figures.add(f"{jobs} jobs, wall time", wall, "s")
            figures.add(f"{jobs} jobs, CPU time", cpu, "s")
            print(f"{jobs:>6}{wall:>10.1f}{cpu:>10.1f}{first / wall:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
