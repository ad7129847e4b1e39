"""Lineage: each attempt contributes the steps after its resume step and up to the next one's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train_hooks.export_format.errors import DamageError, InputError
from train_hooks.export_format.lineage import StepInterval, canonical_attempt, lineage
from train_hooks.export_format.records import AttemptInfo


def attempt(number: int, parent: int | None, resume_step: int) -> AttemptInfo:
    return AttemptInfo(
        run_id="r", attempt=number, parent_attempt=parent, resume_step=resume_step, num_writers=1, claim="c",
        started_unix_s=0.0, host="h:1", config={}, versions={},
    )  # fmt: skip


def intervals(attempts: list[AttemptInfo], number: int, step: int | None = None) -> list[tuple[int, int, int | None]]:
    return [(part.attempt, part.first_step, part.last_step) for part in lineage(attempts, number, step)]


CHAIN = [attempt(1, None, 0), attempt(2, 1, 10), attempt(3, 2, 15)]


@pytest.mark.parametrize(
    ("attempts", "number", "step", "expected"),
    [
        (CHAIN, 1, None, [(1, 1, None)]),
        (CHAIN, 3, None, [(1, 1, 10), (2, 11, 15), (3, 16, None)]),
        (CHAIN, 3, 20, [(1, 1, 10), (2, 11, 15), (3, 16, 20)]),
        (CHAIN, 3, 15, [(1, 1, 10), (2, 11, 15)]),
        (CHAIN, 3, 12, [(1, 1, 10), (2, 11, 12)]),
        (CHAIN, 3, 4, [(1, 1, 4)]),
        (CHAIN, 2, 0, []),
    ],
)
def test_a_chain(
    attempts: list[AttemptInfo], number: int, step: int | None, expected: list[tuple[int, int, int | None]]
) -> None:
    assert intervals(attempts, number, step) == expected


def test_a_rollback_further_back_than_the_parents_own_resume_step() -> None:
    """Attempt 3 was told that it comes from attempt 2, with a checkpoint from before attempt 2 began."""
    attempts = [attempt(1, None, 0), attempt(2, 1, 10), attempt(3, 2, 6)]

    assert intervals(attempts, 3) == [(1, 1, 6), (3, 7, None)]


def test_a_resume_at_the_very_step_contributes_nothing_twice() -> None:
    attempts = [attempt(1, None, 0), attempt(2, 1, 10), attempt(3, 2, 10), attempt(4, 3, 10)]

    assert intervals(attempts, 4) == [(1, 1, 10), (4, 11, None)]


def test_a_start_from_scratch_in_the_same_directory() -> None:
    assert intervals([attempt(1, None, 0), attempt(2, None, 0)], 2) == [(2, 1, None)]


def test_the_latest_attempt_with_a_step_is_canonical() -> None:
    assert canonical_attempt({1: 10, 2: 4, 3: None}) == 2
    assert canonical_attempt({1: None}) is None
    assert canonical_attempt({}) is None


def test_what_is_not_there() -> None:
    with pytest.raises(InputError, match="no attempt 9"):
        lineage(CHAIN, 9)
    with pytest.raises(DamageError, match="attempt 1 is named as a parent"):
        lineage(CHAIN[1:], 3)
    with pytest.raises(DamageError, match="not earlier"):
        lineage([attempt(1, 2, 0), attempt(2, 1, 0)], 2)
    with pytest.raises(DamageError, match="not earlier"):
        lineage([attempt(1, 1, 0)], 1)


def test_an_interval_holds_its_steps() -> None:
    interval = StepInterval(attempt=2, first_step=3, last_step=5)

    assert [step for step in range(8) if interval.holds(2, step)] == [3, 4, 5]
    assert not interval.holds(1, 4)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=8), st.data())
def test_any_tree_of_attempts_gives_each_step_once(shape: list[tuple[int, int]], data: st.DataObject) -> None:
    attempts = [attempt(1, None, 0)]
    for number, (parent, resume_step) in enumerate(shape, 2):
        attempts.append(attempt(number, parent % (number - 1) + 1, resume_step))
    number = data.draw(st.integers(1, len(attempts)))
    last = data.draw(st.integers(0, 40))
    steps = [
        step
        for part in lineage(attempts, number, last)
        for step in range(part.first_step, (part.last_step if part.last_step is not None else last) + 1)
    ]

    assert steps == list(range(1, last + 1))
