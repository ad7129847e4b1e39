"""Which rows of which fetched micro-batches does a tensor of tokens hold?

Every byte is compared, and nothing is assumed of the tensor's origin. These are tried in this order:

1. all of a micro-batch, in another integer dtype or shape as well, or without the last token of each row;
2. rows of one or several micro-batches, whole or truncated to their first columns.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from train_hooks.hook.tensors.snapshots import Array, Snapshot

__all__ = ["FetchedRow", "RowMatch", "match_rows", "match_whole"]

_NUM_SAMPLED = 8  # tokens of a row that are compared first
FetchedRow = tuple[Snapshot, int]
"""A fetched micro-batch and the number of a row in it."""


class RowMatch(NamedTuple):
    """What a tensor of tokens was found to be.

    whole: the micro-batch that it is all of, or None. rows: otherwise the fetched row behind each of its rows.
    width: how many tokens of each row it has, where it has not all. truncated: whether the trainer cut the rest off;
    False where only the last token is missing, which is no input. shape: its own shape, where that is not
    [rows, tokens].
    """

    whole: Snapshot | None
    rows: tuple[FetchedRow, ...] = ()
    width: int | None = None
    truncated: bool = False
    shape: tuple[int, ...] | None = None

    @property
    def snapshots(self) -> list[Snapshot]:
        """All micro-batches that it has rows of, each once, in the order of their first rows in it."""
        return [self.whole] if self.whole else list(dict.fromkeys(row[0] for row in self.rows))

    def all_rows(self) -> Sequence[FetchedRow]:
        """The fetched row behind each of its rows."""
        return self.rows if self.whole is None else [(self.whole, row) for row in range(self.whole.num_slots)]

    @property
    def form(self) -> list[str]:
        """In what form the tensor has the tokens, without their dtype; as the record's `relation` says it."""
        found = [] if self.whole else ["rows"]
        if self.width is not None:
            return [*found, f"[:, :{self.width}]" if self.truncated else "[:, :-1]"]
        if self.shape is not None:
            return [*found, "flatten" if len(self.shape) == 1 else f"shape {list(self.shape)}"]
        return found


def match_whole(snapshot: Snapshot, array: Array) -> RowMatch | None:
    """`array` as all of a micro-batch; None where it is not."""
    ours = snapshot.forward_tokens()
    num_slots, length = ours.shape
    if num_slots == 1 and array.ndim == 1 and array.size == length - 1:
        array = array[None]
    if array.size == ours.size and array.size:
        if not _equal_tokens(ours, array if array.shape == ours.shape else array.reshape(ours.shape)):
            return None
        return RowMatch(snapshot, shape=None if array.shape == ours.shape else array.shape)
    if length > 1 and array.shape == (num_slots, length - 1) and _equal_tokens(ours[:, :-1], array):
        return RowMatch(snapshot, width=length - 1)
    return None


def match_rows(snapshots: Iterable[Snapshot], array: Array, *, free: bool, truncated: bool = True) -> RowMatch | None:
    """`array` as rows of these micro-batches, the first that are equal; None where it is not.

    free: only rows that no forward has got yet, each of them once. truncated: whether the rows may be cut to their first
    columns.
    """
    candidates = [snapshot for snapshot in snapshots if not free or snapshot.free_rows().any()]
    for rows, fits in _readings(candidates, array):
        for cut in (False, True) if truncated else (False,):
            found = _find_rows([each for each in candidates if fits(each, cut)], rows, free=free)
            if found is not None:
                length = found[0][0].forward_tokens().shape[1]
                width = None if rows.shape[1] == length else rows.shape[1]
                if free and cut and _are_whole_microbatch(found):
                    return RowMatch(found[0][0], (), width, cut)
                return RowMatch(None, found, width, cut, None if rows.shape == array.shape else array.shape)
    return None


def _readings(snapshots: Sequence[Snapshot], array: Array) -> Iterable[tuple[Array, Callable[[Snapshot, bool], bool]]]:
    """The ways to read `array` as rows, each with a test: may a micro-batch have these, whole or (True) truncated?"""
    if not array.size:
        return
    lengths = dict.fromkeys(snapshot.forward_tokens().shape[1] for snapshot in snapshots)
    if array.ndim >= 2:
        width = array.shape[-1]
        longest = max(lengths, default=0)
        if width <= longest:
            yield (
                array.reshape(-1, width),
                lambda each, cut: (
                    (each.columns is None and each.forward_tokens().shape[1] - width > 1)
                    if cut
                    else 0 <= each.forward_tokens().shape[1] - width <= 1
                ),
            )
    for length in lengths:
        if array.size % length == 0 and (array.ndim == 1 or array.shape[-1] != length):
            yield (
                array.reshape(-1, length),
                lambda each, cut, length=length: not cut and each.forward_tokens().shape[1] == length,  # type: ignore[misc]
            )


def _are_whole_microbatch(rows: Sequence[FetchedRow]) -> bool:
    """Whether these are the rows of one micro-batch, all and in their order, of which none was consumed."""
    first = rows[0][0]
    return (
        first.consumed_by is None
        and all(snapshot is first for snapshot, _ in rows)
        and [row for _, row in rows] == list(range(first.num_slots))
    )


def _find_rows(snapshots: Sequence[Snapshot], rows: Array, *, free: bool) -> tuple[FetchedRow, ...] | None:
    """The fetched row behind each of `rows`; None unless all are found, in micro-batches of one length."""
    width = rows.shape[1]
    wanted: dict[bytes, list[int]] = {}
    for at, key in enumerate(_sampled_tokens(rows)):
        wanted.setdefault(key, []).append(at)
    found: list[FetchedRow | None] = [None] * len(rows)
    num_missing = len(rows)
    for snapshot in snapshots:
        ours = snapshot.forward_tokens()
        if _has_row_of_other_length(found, ours.shape[1]):
            continue
        usable = snapshot.free_rows() if free else np.ones(snapshot.num_slots, bool)
        for row, key in enumerate(_sampled_tokens(ours[:, :width])):
            if not usable[row]:
                continue
            for at in wanted.get(key, ()):
                if found[at] is None and np.array_equal(ours[row, :width], rows[at]):
                    found[at] = (snapshot, row)
                    num_missing -= 1
                    if free:
                        break
        if not num_missing:
            return tuple(each for each in found if each is not None)
    return None


def _has_row_of_other_length(found: Sequence[FetchedRow | None], length: int) -> bool:
    return any(each is not None and each[0].forward_tokens().shape[1] != length for each in found)


def _sampled_tokens(rows: Array) -> list[bytes]:
    """A few tokens of each row, as a key by which equal rows are found fast."""
    step = max(1, rows.shape[1] // _NUM_SAMPLED)
    few: npt.NDArray[np.int64] = np.ascontiguousarray(rows[:, ::step], np.int64)
    return [row.tobytes() for row in few]


def _equal_tokens(ours: Array, array: Array) -> bool:
    """Whether all are the same numbers."""
    step = max(1, ours.shape[1] // _NUM_SAMPLED)
    return bool((ours[0, ::step] == array[0, ::step]).all()) and bool(np.array_equal(ours, array))
