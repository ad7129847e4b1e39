"""Ranks that feed the same rows, each as a writer: found by the digests of their first steps, and told once."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.train_hooks.hook import same_rows_job
from tests.train_hooks.hook.torchrun import run
from train_hooks.hook.same_rows import FirstRows, ranks_of_same_rows, warn_of_same_rows
from train_hooks.hook.writer_rank import WriterRank

ALONE = WriterRank(dp_rank=0, num_writers=1, is_writer=True)


def rows(*seeds: int) -> np.ndarray:
    """A micro-batch: one row for each seed."""
    return np.stack([np.random.default_rng(seed).integers(0, 97, 16) for seed in seeds])


def fed(*steps: Sequence[int], first: int = 1) -> FirstRows:
    """What a rank fed, one row a micro-batch."""
    found = FirstRows()
    for step, seeds in enumerate(steps, first):
        for seed in seeds:
            found.add(step, rows(seed))
    return found


def same(*ranks: FirstRows, last_step: int = 100) -> list[list[int]]:
    """Groups of ranks that fed the same rows."""
    return ranks_of_same_rows([rank.digests(last_step) for rank in ranks])


def test_ranks_that_feed_the_same_rows() -> None:
    assert same(fed([1], [2], [3]), fed([1], [2], [3])) == [[0, 1]]
    assert same(fed([1], [2]), fed([3], [4]), fed([1], [2]), fed([3], [4])) == [[0, 2], [1, 3]]
    assert same(fed([1], [2]), fed([1], [2]), fed([1], [2]), fed([7], [8])) == [[0, 1, 2]]


def test_ranks_that_feed_rows_of_their_own() -> None:
    assert same(fed([1], [2], [3]), fed([4], [5], [6])) == []
    assert same(fed([1], [2], [3])) == []
    assert same() == []


def test_some_rows_in_common_are_no_reason() -> None:
    assert same(fed([1, 2]), fed([1, 3])) == []
    assert same(fed([1], [2], [3]), fed([1], [2], [4])) == []
    assert same(fed([1, 2]), fed([1])) == []
    assert same(fed([1], [2]), fed([1])) == []
    assert same(fed([1, 1]), fed([1])) == []


def test_steps_without_rows_do_not_count() -> None:
    assert same(fed([], [], []), fed([], [], [])) == []
    assert same(FirstRows(), FirstRows()) == []
    assert same(fed([], [2]), fed([], [2])) == [[0, 1]]
    empty = FirstRows()
    empty.add(1, rows(1)[:0])
    assert same(empty, empty) == []
    assert empty.digests(1) == {}


def test_how_rows_are_dealt_to_microbatches_does_not_count() -> None:
    one, other, wide = FirstRows(), FirstRows(), FirstRows()
    one.add(1, rows(1, 2, 3))
    other.add(1, rows(1, 2))
    other.add(1, rows(3))
    wide.add(1, np.asfortranarray(rows(3, 1, 2).astype(np.uint16)))
    assert same(one, other, wide) == [[0, 1, 2]]


def test_rows_of_another_length_are_others() -> None:
    one, other = FirstRows(), FirstRows()
    one.add(1, np.zeros((2, 4), np.int64))
    other.add(1, np.zeros((1, 8), np.int64))
    assert same(one, other) == []


def test_only_the_first_steps_are_kept() -> None:
    assert same(fed([1], [2], [3], [4]), fed([1], [2], [3], [5])) == [[0, 1]]
    assert list(fed([1], [2], [3], [4], first=8).digests(100)) == [8, 9, 10]


def test_only_whole_steps_are_compared() -> None:
    assert same(fed([1], [2], [3]), fed([1], [2]), last_step=2) == [[0, 1]]
    assert same(fed([1], [2], [3]), fed([1], [2]), last_step=3) == []


def test_one_process_alone_is_never_told() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_same_rows(fed([1]), ALONE, last_step=1)


def test_many_groups_are_not_all_named() -> None:
    from train_hooks.hook.same_rows import message_of

    groups = [[2 * number, 2 * number + 1] for number in range(100)]
    message = message_of(groups, [1, 2, 3])
    assert message.startswith("ranks 0 and 1, 2 and 3, 4 and 5, ")
    assert "14 and 15, and 92 more groups fed the same rows in steps 1, 2, 3" in message
    assert "0, 1, 2, 3, 4, 5, 6, 7 and 56 more" in message_of([list(range(64))], [1])


@pytest.mark.job
def test_four_ranks_that_share_data_in_pairs(tmp_path: Path) -> None:
    run(Path(same_rows_job.__file__), [tmp_path], num_ranks=4)
    told = [(tmp_path / f"rank{rank}.txt").read_text() for rank in range(4)]
    assert told[1:] == ["", "", ""]
    assert told[0].startswith(
        "ranks 0 and 1, 2 and 3 fed the same rows in steps 1, 2, and each records them; if they share data (tensor, context or "
        "pipeline parallelism), attach with mesh=DeviceMesh with named axes; if not, their samplers give them the same rows"
    )
