"""Random training loops: what the hook records of each is what an independent log of its forwards has."""

from tests.proofs.outcome import Outcome
from tests.zoo.compositions import run

__all__ = ["prove_loops"]


def prove_loops(num: int, seed: int) -> Outcome:
    """`num` compositions. A loop that is refused in words is no failure, unless there was nothing to refuse."""
    tally = run(seed, range(num))
    return Outcome(
        figure={
            "loops": tally.num_compositions,
            "steps": tally.num_steps,
            "forwards": tally.num_forwards,
            "exact": tally.verdicts["exact"],
            "refused": tally.verdicts["refused"],
        },
        failures=[*tally.silent, *tally.false_alarms, *tally.passed_over],
    )
