"""`kiseki index --follow` beside a real two-rank training: how soon a step is traceable, and what it costs the training.

    python bench/follow.py --steps 300

Trains the example twice, alone and with a follower at the lowest priority (the CPU that a spare core gives it). A step's
lag runs from when it was first seen acknowledged to when a published generation holds it.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.support.history import bench_options, recorded  # noqa: E402
from indexer.reader import IndexReader  # noqa: E402
from indexer.selection.rows import Selection  # noqa: E402
from indexer.storage.generations import published  # noqa: E402
from indexer.storage.paths import IndexPaths  # noqa: E402
from indexer.trace.counts import count_of_ngram  # noqa: E402
from train_hooks.export_format.errors import KisekiError  # noqa: E402
from train_hooks.export_format.reading.reader import RunReader  # noqa: E402

LOOK_S = 0.5
FOLLOW = "import os, sys; os.nice(19); sys.argv = ['kiseki', 'index', sys.argv[1], '--follow']; from ui.cli import main; main()"


def train(run_dir: Path, steps: int) -> subprocess.Popen[bytes]:
    """The example on two ranks."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node", "2", ROOT / "examples" / "train_fsdp.py", "--run-dir", run_dir,
        "--corpus", ROOT / "examples" / "corpus", "--steps", str(steps),
    ]  # fmt: skip
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def last_committed(run_dir: Path) -> int:
    """The newest acknowledged step; 0 before there is one."""
    try:
        return max((step for attempt in RunReader(run_dir).attempts() for step in attempt.committed_steps()), default=0)
    except KisekiError:
        return 0


def watch(run_dir: Path, steps: int, training: subprocess.Popen[bytes]) -> list[float]:
    """Seconds from acknowledged to published, by step."""
    seen: dict[int, float] = {}
    lags: dict[int, float] = {}
    until = None
    while len(lags) < steps and (until is None or time.monotonic() < until):
        now = time.monotonic()
        for step in range(len(seen) + 1, last_committed(run_dir) + 1):
            seen[step] = now
        generation = published(IndexPaths(run_dir)) if (run_dir / "index").exists() else None
        for step in range(len(lags) + 1, (max(generation.covered.values()) if generation else 0) + 1):
            lags[step] = now - seen.get(step, now)
        if training.poll() is not None and until is None:
            until = now + 120
        time.sleep(LOOK_S)
    return list(lags.values())


def step_seconds(run_dir: Path) -> float:
    """Median time from one step's commit to the next one's, the first tenth left out."""
    times = sorted(
        record.unix_time_s
        for attempt in RunReader(run_dir).attempts()
        for writer, record in attempt.step_records()
        if writer == 0 and record.kind == "metrics"
    )
    return float(np.median(np.diff(times)[len(times) // 10 :]))


def main() -> None:
    """Entry point."""
    parser = bench_options(__doc__)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, recorded("follow", options) as figures:
        alone, followed = Path(name) / "alone", Path(name) / "followed"
        started = time.monotonic()
        if train(alone, options.steps).wait() != 0:
            raise SystemExit("the training failed")
        alone_s, started = time.monotonic() - started, time.monotonic()
        training = train(followed, options.steps)
        follower = subprocess.Popen([sys.executable, "-c", FOLLOW, followed], cwd=ROOT, stdout=subprocess.DEVNULL)
        try:
            lags = watch(followed, options.steps, training)
        finally:
            follower.terminate()
            follower.wait()
        followed_s = time.monotonic() - started
        if training.wait() != 0 or len(lags) < options.steps:
            raise SystemExit(f"only {len(lags)} of {options.steps} steps were published")
        reader = IndexReader.open(followed)
        if count_of_ngram(reader, reader.shards[-1].tokens(0)[:8].tolist(), Selection()).count < 1:
            raise SystemExit("the last steps are not found")
        print(f"{options.steps} steps, {reader.generation.number} generations, {len(reader.shards)} shards")
        figures.add("lag of a step, median", statistics.median(lags), "s")
        figures.add("lag of a step, greatest", max(lags), "s")
        figures.add("step time alone", step_seconds(alone) * 1e3, "ms")
        figures.add("step time followed", step_seconds(followed) * 1e3, "ms")
        figures.add("whole training alone", alone_s, "s")
        figures.add("whole training followed", followed_s, "s")
        print(f"lag of a step, s: median {statistics.median(lags):.1f}, max {max(lags):.1f}")
        print(
            f"step time, ms: alone {step_seconds(alone) * 1e3:.1f}, followed {step_seconds(followed) * 1e3:.1f}, "
            f"ratio {step_seconds(followed) / step_seconds(alone):.3f}"
        )
        print(f"whole training, s: alone {alone_s:.1f}, followed {followed_s:.1f} (with the wait for the last steps)")


if __name__ == "__main__":
    main()
