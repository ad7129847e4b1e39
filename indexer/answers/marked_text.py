"""A text with ranges of it marked: matches in a snippet, spans in a traced text. Pages and terminals only draw the pieces.

Ranges are half-open, in characters. They may overlap; the text is cut at every edge, and each piece knows the ranges over it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

__all__ = ["TextPiece", "join_ranges", "pieces_of", "pieces_with_one_mark"]

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Characters [start, end) of a text. marks: the ranges over all of it, by index, ascending."""

    start: int
    end: int
    marks: tuple[int, ...]


def pieces_of(num_characters: int, ranges: Sequence[Range | None]) -> list[TextPiece]:
    """The whole text, cut wherever a range begins or ends. None, and an empty range, mark nothing."""
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for index, place in enumerate(ranges):
        if place is None:
            continue
        start, end = max(0, place[0]), min(num_characters, place[1])
        if start < end:
            begins.setdefault(start, []).append(index)
            ends.setdefault(end, []).append(index)
    active: set[int] = set()
    pieces = []
    for start, end in pairwise(sorted({0, num_characters, *begins, *ends})):
        active.difference_update(ends.get(start, ()))
        active.update(begins.get(start, ()))
        pieces.append(TextPiece(start, end, tuple(sorted(active))))
    return pieces


def pieces_with_one_mark(num_characters: int, ranges: Sequence[Range | None]) -> list[TextPiece]:
    """The same with one mark a piece, or none: where ranges overlap, the earlier index is drawn."""
    groups = groupby(pieces_of(num_characters, ranges), key=lambda piece: piece.marks[:1])
    cut = [(list(group), marks) for marks, group in groups]
    return [TextPiece(group[0].start, group[-1].end, marks) for group, marks in cut]


def join_ranges(ranges: Iterable[Range], start: int = 0, end: int | None = None) -> tuple[Range, ...]:
    """The ranges in order, cut to [start, end), those that overlap or touch as one."""
    joined: list[Range] = []
    for first, last in sorted(ranges):
        first, last = max(first, start), last if end is None else min(last, end)
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        elif first < last:
            joined.append((first, last))
    return tuple(joined)
