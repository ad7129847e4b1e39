"""Proof: two readers that share no code read the same from random exports, and from those that old versions left."""

import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.proofs.outcome import Outcome
from tests.proofs.random_exports import random_export
from tests.simulated_job.job import RUN_DIR
from tests.support.second_reader import assert_readers_agree
from train_hooks.export_format.errors import KisekiError

__all__ = ["KEPT", "compare_seed", "kept_exports", "prove_readers"]

KEPT = Path(__file__).resolve().parents[1] / "exports"


def compare_seed(seed: int) -> tuple[int, str | None]:
    """(rows compared, what differs) of a random export."""
    try:
        files = random_export(seed)
        if not files.exists(RUN_DIR / "export" / "run.json"):  # no run came of it
            return 0, None
        with tempfile.TemporaryDirectory() as directory:
            files.dump(RUN_DIR, Path(directory))
            return assert_readers_agree(Path(directory)), None
    except (AssertionError, KisekiError) as error:
        return 0, f"readers, seed {seed}: {error}"


def kept_exports() -> list[Path]:
    """The run directories that are kept in the repository."""
    return sorted(path.parents[1] for path in KEPT.glob("**/export/run.json"))


def prove_readers(num_seeds: int, seed: int, jobs: int) -> Outcome:
    """Random exports of `num_seeds` seeds, and all that are kept."""
    seeds = range(seed * 1_000_000, seed * 1_000_000 + num_seeds)
    with ProcessPoolExecutor(jobs) as pool:
        found = list(pool.map(compare_seed, seeds, chunksize=4))
    failures = [failure for _, failure in found if failure is not None]
    num_rows = sum(rows for rows, _ in found)
    kept = kept_exports()
    for run_dir in kept:
        try:
            num_rows += assert_readers_agree(run_dir)
        except AssertionError as error:
            failures.append(f"readers, {run_dir.name}: {error}")
    figure = {"exports": num_seeds, "kept_exports": len(kept), "rows": num_rows, "disagreements": len(failures)}
    return Outcome(figure=figure, failures=failures)
