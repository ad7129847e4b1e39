"""The long proofs that an export is what training consumed, whole or as a sample.

    python bench/proofs.py                       all of them, whole (`make proofs`); appends to bench/history.jsonl
    python bench/proofs.py --only damage --jobs 4
    python bench/proofs.py --sample --seed 7     about a twentieth of each; prints a table and appends nothing

- faults: every operation of a scripted job fails in every way in which a disk, a process or the power can.
- simulator: 100,000 simulated jobs with crashes, rollbacks, resizes, full disks and writers that outlive their attempt.
- kills: a real FSDP2 job, killed 25 times with `kill -9`; what is replayed is bit for bit what its forwards got.
- damage: 10,000 random damages of exports, each found and named by `verify`.
- tampering: 1,000 changes of compacted exports and 250 of others, by somebody who makes hashes anew, each found.
- loops: 2,000 random training loops; what is recorded is what an independent log of their forwards has, or it was refused.
- readers: random exports, and those that are kept, read the same by a reader that was written from the document alone.

Exit code 1 where something does not hold; each failure is a line that says how to see it again.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.support.history import Figures, append_figures, bench_options
from tests.proofs.damage import prove_damage
from tests.proofs.jobs import prove_faults, prove_kills, prove_simulator
from tests.proofs.loops import prove_loops
from tests.proofs.outcome import Outcome
from tests.proofs.readers import prove_readers
from tests.proofs.tampering import prove_tampering


@dataclass(frozen=True, slots=True)
class Proof:
    """whole, sample: take a seed and the number of processes."""

    whole: Callable[[int, int], Outcome]
    sample: Callable[[int, int], Outcome]


PROOFS: Mapping[str, Proof] = {
    "faults": Proof(
        whole=lambda seed, jobs: prove_faults(1.0, seed, jobs), sample=lambda seed, jobs: prove_faults(0.05, seed, jobs)
    ),
    "simulator": Proof(
        whole=lambda seed, jobs: prove_simulator(100_000, seed, jobs),
        sample=lambda seed, jobs: prove_simulator(5_000, seed, jobs),
    ),
    "kills": Proof(
        whole=lambda seed, _: prove_kills(25, 8 * 26, seed), sample=lambda seed, _: prove_kills(1, 12, seed)
    ),
    "damage": Proof(
        whole=lambda seed, jobs: prove_damage(10_000, seed, jobs),
        sample=lambda seed, jobs: prove_damage(500, seed, jobs),
    ),
    "tampering": Proof(
        whole=lambda seed, jobs: prove_tampering(1_000, 250, seed, jobs),
        sample=lambda seed, jobs: prove_tampering(50, 25, seed, jobs),
    ),
    "loops": Proof(whole=lambda seed, _: prove_loops(2_000, seed), sample=lambda seed, _: prove_loops(50, seed)),
    "readers": Proof(
        whole=lambda seed, jobs: prove_readers(500, seed, jobs), sample=lambda seed, jobs: prove_readers(25, seed, jobs)
    ),
}


def main() -> int:
    """Exit code 1 where a proof failed."""
    parser = bench_options(__doc__)
    parser.add_argument("--sample", action="store_true", help="a twentieth of each, and no line in the history")
    parser.add_argument("--only", choices=[*PROOFS], action="append", help="this one; may be given more than once")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    failed = False
    for name in options.only or PROOFS:
        proof, began = PROOFS[name], time.monotonic()
        outcome = (proof.sample if options.sample else proof.whole)(options.seed, options.jobs)
        seconds = time.monotonic() - began
        failed = failed or bool(outcome.failures)
        print(
            f"{name:10} {'FAILED' if outcome.failures else 'holds ':6} {seconds:6.0f} s  {_in_words(outcome)}",
            flush=True,
        )
        for failure in outcome.failures[:20]:
            print(f"  {failure}", flush=True)
        if not options.sample:
            _append(name, outcome, options, seconds)
    return 1 if failed else 0


def _in_words(outcome: Outcome) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in outcome.figure.items() if not name.startswith("of_"))


def _append(name: str, outcome: Outcome, options: argparse.Namespace, seconds: float) -> None:
    """A line of the history: what was counted. Which other proofs were run in the same call does not matter to it."""
    figures = Figures()
    for counted, number in outcome.figure.items():
        figures.add(counted, number)
    figures.add("time", round(seconds), "s")
    kept = argparse.Namespace(seed=options.seed, jobs=options.jobs, no_history=options.no_history)
    append_figures(f"proofs {name}", figures, kept)


if __name__ == "__main__":
    sys.exit(main())
