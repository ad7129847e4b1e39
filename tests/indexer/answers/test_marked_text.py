"""Pieces are the whole text, and say of each character which ranges hold it."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from indexer.answers.marked_text import join_ranges, pieces_of, pieces_with_one_mark

RANGES = st.lists(st.none() | st.tuples(st.integers(0, 14), st.integers(0, 14)), max_size=6)


@given(st.integers(0, 12), RANGES)
def test_every_character_has_its_marks(num_characters: int, ranges: list[tuple[int, int] | None]) -> None:
    pieces = pieces_of(num_characters, ranges)
    assert [at for piece in pieces for at in range(piece.start, piece.end)] == list(range(num_characters))
    for piece in pieces:
        for at in range(piece.start, piece.end):
            holding = [index for index, place in enumerate(ranges) if place is not None and place[0] <= at < place[1]]
            assert list(piece.marks) == holding
    one = pieces_with_one_mark(num_characters, ranges)
    assert [at for piece in one for at in range(piece.start, piece.end)] == list(range(num_characters))
    leads = {at: piece.marks[:1] for piece in pieces for at in range(piece.start, piece.end)}
    assert all(leads[at] == piece.marks for piece in one for at in range(piece.start, piece.end))
    assert all(before.marks != after.marks for before, after in pairwise(one))


@given(RANGES, st.integers(0, 5), st.none() | st.integers(6, 14))
def test_joined_ranges_hold_the_same_characters(
    ranges: list[tuple[int, int] | None], start: int, end: int | None
) -> None:
    known = [place for place in ranges if place is not None and place[0] < place[1]]
    joined = join_ranges(known, start, end)
    held = {at for first, last in known for at in range(max(first, start), last if end is None else min(last, end))}
    assert [at for first, last in joined for at in range(first, last)] == sorted(held)
    assert all(before[1] < after[0] for before, after in pairwise(joined))


def test_overlapping_spans_are_drawn_one_after_the_other() -> None:
    assert [(piece.start, piece.end, piece.marks) for piece in pieces_with_one_mark(9, [(0, 4), (2, 7)])] == [
        (0, 4, (0,)),
        (4, 7, (1,)),
        (7, 9, ()),
    ]
