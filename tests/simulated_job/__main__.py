"""`python -m tests.simulated_job --seeds 100000 --jobs 2`: play many jobs, name the seeds that break an invariant."""

import argparse
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor

from tests.simulated_job.invariants import play


def play_range(seeds: range) -> list[tuple[int, str]]:
    """Seeds that failed, with their tracebacks."""
    failed = []
    for seed in seeds:
        try:
            play(seed)
        except Exception:  # noqa: BLE001  whatever a seed raises is its result
            failed.append((seed, traceback.format_exc()))
    return failed


def main() -> int:
    """Exit code 1 where a seed failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    ranges = [range(at, min(at + 100, options.seeds)) for at in range(options.first, options.seeds, 100)]
    began, failed, done = time.monotonic(), [], 0
    with ProcessPoolExecutor(options.jobs) as pool:
        for result, seeds in zip(pool.map(play_range, ranges), ranges, strict=True):
            failed += result
            done += len(seeds)
            if done % 5000 == 0:
                print(f"{done} seeds, {len(failed)} failed, {time.monotonic() - began:.0f} s", flush=True)
    for seed, text in failed[:5]:
        print(f"seed {seed}:\n{text}")
    print(f"{done} seeds, {len(failed)} failed {[seed for seed, _ in failed[:20]]}, {time.monotonic() - began:.1f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
