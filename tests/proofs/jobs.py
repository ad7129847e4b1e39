"""Proofs by whole jobs: every operation fails, thousands of simulated jobs, real processes that are really killed."""

import random
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.proofs.outcome import Outcome
from tests.simulated_job.__main__ import play_range
from tests.support.crash_scenario import MODES, Fault, failure_of, operations
from tests.support.second_reader import assert_readers_agree
from tests.train_hooks.hook.crashes import crash_and_compare
from train_hooks.export_format.verify.findings import Severity
from train_hooks.export_format.verify.run import verify

__all__ = ["fault_points", "prove_faults", "prove_kills", "prove_simulator"]

_SEEDS_A_TASK = 50


def fault_points(seed: int) -> list[Fault]:
    """Every operation of the scripted job, in every way in which it can fail."""
    return [Fault(at, mode, seed) for at in range(1, len(operations()) + 1) for mode in MODES]


def prove_faults(share: float, seed: int, jobs: int) -> Outcome:
    """A share of all fault points; 1.0 is all of them."""
    everything = fault_points(seed)
    faults = everything
    if share < 1:
        faults = random.Random(seed).sample(everything, round(share * len(everything)))
    with ProcessPoolExecutor(jobs) as pool:
        failures = [failure for failure in pool.map(failure_of, faults, chunksize=8) if failure is not None]
    figure = {"operations": len(everything) // len(MODES), "fault_points": len(faults), "failures": len(failures)}
    return Outcome(figure=figure, failures=failures)


def prove_simulator(num_seeds: int, seed: int, jobs: int) -> Outcome:
    """So many simulated jobs."""
    first = seed * 1_000_000
    ranges = [
        range(at, min(at + _SEEDS_A_TASK, first + num_seeds)) for at in range(first, first + num_seeds, _SEEDS_A_TASK)
    ]
    with ProcessPoolExecutor(jobs) as pool:
        failed = [failure for result in pool.map(play_range, ranges) for failure in result]
    failures = [f"simulator, seed {number}: {text.strip().splitlines()[-1]}" for number, text in failed]
    return Outcome(figure={"seeds": num_seeds, "failures": len(failures)}, failures=failures)


def prove_kills(num_crashes: int, steps: int, seed: int) -> Outcome:
    """A real job on two ranks that is killed and resumed; its export is what its forwards got, and both readers read it."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        outcome = crash_and_compare(work, num_crashes=num_crashes, steps=steps, checkpoint_every=3, seed=seed)
        failures = [f"kills, seed {seed}: {problem}" for problem in outcome.problems]
        failures += _faults_of(work / "run")
    figure = {
        "kills": outcome.num_crashes, "attempts": outcome.num_attempts, "forwards": outcome.num_forwards,
        "superseded": outcome.num_superseded, "differences": len(failures),
    }  # fmt: skip
    return Outcome(figure=figure, failures=failures)


def _faults_of(run_dir: Path) -> Sequence[str]:
    found = [f"kills: {finding.path} {finding.message}" for finding in verify(run_dir).of(Severity.DAMAGED)]
    try:
        assert_readers_agree(run_dir)
    except AssertionError as error:
        found.append(f"kills: {error}")
    return found
