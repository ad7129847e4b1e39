"""Which rank writes."""

import pytest

from train_hooks.export_format.errors import InputError
from train_hooks.hook.writer_rank import writer_rank


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({}, (0, 1, True)),
        ({"dp": (3, 8)}, (3, 8, True)),
        ({"dp_replicate": (1, 2), "dp_shard": (2, 4)}, (6, 8, True)),
        ({"pp": (0, 2), "dp": (1, 2), "tp": (0, 4)}, (1, 2, True)),
        ({"pp": (1, 2), "dp": (1, 2), "tp": (0, 4)}, (1, 2, False)),
        ({"dp": (0, 2), "cp": (1, 2)}, (0, 2, False)),
    ],
)
def test_the_writer_of_a_mesh(axes: dict[str, tuple[int, int]], expected: tuple[int, int, bool]) -> None:
    rank = writer_rank(axes)

    assert (rank.dp_rank, rank.num_writers, rank.is_writer) == expected


def test_each_dp_rank_has_one_writer() -> None:
    ranks = [
        writer_rank({"pp": (p, 2), "dp_shard": (d, 3), "tp": (t, 2)})
        for p in range(2)
        for d in range(3)
        for t in range(2)
    ]

    assert sorted(rank.dp_rank for rank in ranks if rank.is_writer) == [0, 1, 2]


def test_an_axis_of_unknown_role_is_refused() -> None:
    with pytest.raises(InputError, match="mesh axis 'spatial'"):
        writer_rank({"spatial": (0, 2)})
