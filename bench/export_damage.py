"""Damage exports of format 3 in ten thousand random ways; `verify` must find and name each.

    python bench/export_damage.py --num 10000 --seed 1

Kinds: one flipped bit, a cut, a deleted, doubled, copied or swapped file. The exports are sealed, compacted, with tokens
taken out, and growing (`tests/proofs/damage.py`). Exit code 1 where one was not found, or not named.
"""

import sys
import time

from bench.support.history import bench_options, recorded
from tests.proofs.damage import prove_damage


def main() -> int:
    """Exit code 0 where all were found."""
    parser = bench_options(__doc__)
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    with recorded("export_damage", options) as figures:
        began = time.monotonic()
        outcome = prove_damage(options.num, options.seed, options.jobs)
        seconds = time.monotonic() - began
        for name, number in outcome.figure.items():
            figures.add(name, number)
        figures.add("time", seconds, "s")
    print(f"{dict(outcome.figure)}, {seconds:.0f} s")
    for text in outcome.failures[:20]:
        print("missed:", text)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
