"""A thousand seeded jobs; `python -m tests.simulated_job --seeds 100000` plays more."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.simulated_job.__main__ import play_range
from tests.simulated_job.invariants import play

pytestmark = pytest.mark.alone

NUM_SEEDS = 1000


def test_no_seed_breaks_an_invariant() -> None:
    ranges = [range(at, at + 50) for at in range(0, NUM_SEEDS, 50)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        failed = [failure for result in pool.map(play_range, ranges) for failure in result]
    assert not failed, failed[0][1]


def test_a_seed_is_always_the_same_job() -> None:
    first, second = play(11), play(11)

    assert first.files.rng.random() == second.files.rng.random()
    assert [rank.fed for rank in first.ranks] == [rank.fed for rank in second.ranks]


def test_the_jobs_reach_what_they_are_for() -> None:
    jobs = [play(seed) for seed in range(60)]

    assert sum(job.num_faults for job in jobs) >= 20
    assert sum(job.num_crashes for job in jobs) >= 20
    assert any(rank.info.parent_attempt is not None for job in jobs for rank in job.ranks)
    assert any(rows == () for job in jobs for rank in job.ranks for rows in rank.fed.values())
