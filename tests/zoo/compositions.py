"""Random training loops against an independent log of their forwards.

    python -m tests.zoo.compositions [--num 2000] [--seed 18]

Prints what became of them. Exits with 1 where a record is silently wrong.
"""

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.zoo.plan_trainer import loop_of
from tests.zoo.plans import Composition, compose
from tests.zoo.play import Outcome, play

__all__ = ["Tally", "run"]


@dataclass(slots=True)
class Tally:
    """What became of many compositions."""

    num_compositions: int = 0
    num_steps: int = 0
    num_forwards: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    silent: list[str] = field(default_factory=list)
    false_alarms: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    def add(self, plan: Composition, outcome: Outcome) -> None:
        """Count one."""
        self.num_compositions += 1
        self.num_steps += outcome.num_steps
        self.num_forwards += outcome.num_forwards
        self.verdicts[outcome.verdict] += 1
        if outcome.error is not None:
            self.reasons[_kind(str(outcome.error))] += 1
        self.kinds.update({_kind(what) for what in outcome.silent})
        if outcome.verdict == "silent":
            self.silent.append(f"{plan}\n{outcome}")
        elif outcome.verdict == "refused" and plan.expect == "exact":
            self.false_alarms.append(f"{plan}\n{outcome}")
        elif outcome.verdict == "exact" and plan.expect == "refused":
            self.passed_over.append(f"{plan}\n{outcome}")

    def table(self) -> str:
        """For people."""
        lines = [
            ("compositions", self.num_compositions),
            ("steps", self.num_steps),
            ("forwards", self.num_forwards),
            ("exact", self.verdicts["exact"]),
            ("refused", self.verdicts["refused"]),
            ("silent differences", len(self.silent)),
            ("false alarms (refused, and should be exact)", len(self.false_alarms)),
            ("exact, and should be refused", len(self.passed_over)),
        ]
        text = [f"{count:8,}  {name}" for name, count in lines]
        for title, counts in (("refused because", self.reasons), ("silent differences", self.kinds)):
            text += ["", title] + [f"{count:8,}  {kind}" for kind, count in counts.most_common()]
        return "\n".join(text)


def _kind(message: str) -> str:
    """The message without its numbers, so that like ones are counted together."""
    return re.sub(r"\d+(, \d+)*", "#", message)[:180]


def run(seed: int, numbers: Sequence[int]) -> Tally:
    """Run the compositions of those numbers."""
    tally, num_threads = Tally(), torch.get_num_threads()
    torch.set_num_threads(1)  # the models are too small for more
    try:
        for number in numbers:
            plan = compose(seed, number)
            with tempfile.TemporaryDirectory() as directory:
                tally.add(plan, play(loop_of(plan), Path(directory)))
    finally:
        torch.set_num_threads(num_threads)
    return tally


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Random training loops against an independent log of their forwards.")
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--show", type=int, default=3, help="of what is wrong, print so many of each kind")
    arguments = parser.parse_args()
    tally = run(arguments.seed, range(arguments.num))
    print(tally.table())
    for kind in (tally.silent, tally.false_alarms, tally.passed_over):
        print(*kind[: arguments.show], sep="\n\n")
    raise SystemExit(1 if tally.silent else 0)


if __name__ == "__main__":
    main()
