"""Which rows of which fetched micro-batches a tensor of tokens holds: every byte compared, nothing assumed of its origin.

A tensor is, tried in this order: all of a micro-batch (in another integer dtype or shape, or all but the last token of
each row), or rows of one or several micro-batches, whole or cut to their first columns.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from train_hooks.hook.tensors.snapshots import Array, Snapshot

__all__ = ["Found", "all_of", "rows_of"]

_SAMPLES = 8  # tokens of a row that are looked at first
Place = tuple[Snapshot, int]


class Found(NamedTuple):
    """What a tensor was found to be.

    snapshot: the micro-batch that it is all of, or None. places: else the row of a micro-batch behind each of its rows.
    width: how many tokens of each row it has, where that is not all. cut: whether the rest was left out by the training,
    rather than by the last target. shape: its own, where that is another than the rows'.
    """

    snapshot: Snapshot | None
    places: tuple[Place, ...] = ()
    width: int | None = None
    cut: bool = False
    shape: tuple[int, ...] | None = None

    @property
    def snapshots(self) -> list[Snapshot]:
        """All micro-batches that it has a part of, each once, by their first row."""
        return [self.snapshot] if self.snapshot else list(dict.fromkeys(place[0] for place in self.places))

    def all_places(self) -> Sequence[Place]:
        """Of each row which row of which micro-batch it is."""
        return (
            self.places if self.snapshot is None else [(self.snapshot, row) for row in range(self.snapshot.num_slots)]
        )

    @property
    def form(self) -> list[str]:
        """In what form the tensor has the tokens, beside their dtype."""
        found = [] if self.snapshot else ["rows"]
        if self.width is not None:
            return [*found, f"[:, :{self.width}]" if self.cut else "[:, :-1]"]
        if self.shape is not None:
            return [*found, "flatten" if len(self.shape) == 1 else f"shape {list(self.shape)}"]
        return found


def all_of(snapshot: Snapshot, fed: Array) -> Found | None:
    """`fed` as all of a micro-batch."""
    ours = snapshot.given_tokens()
    num_slots, length = ours.shape
    if num_slots == 1 and fed.ndim == 1 and fed.size == length - 1:
        fed = fed[None]
    if fed.size == ours.size and fed.size:
        if not _equal(ours, fed if fed.shape == ours.shape else fed.reshape(ours.shape)):
            return None
        return Found(snapshot, shape=None if fed.shape == ours.shape else fed.shape)
    if length > 1 and fed.shape == (num_slots, length - 1) and _equal(ours[:, :-1], fed):
        return Found(snapshot, width=length - 1)
    return None


def rows_of(snapshots: Iterable[Snapshot], fed: Array, *, free: bool, cut: bool = True) -> Found | None:
    """`fed` as rows of micro-batches, the first that fit.

    free: only rows that no forward has got yet. cut: whether the rows may be cut to their first columns.

    Rows that stand in it more often than among those are taken once each, if they are to be free.
    """
    candidates = [snapshot for snapshot in snapshots if not free or snapshot.free_rows().any()]
    for rows, fits in _as_rows(candidates, fed):
        for shorter in (False, True) if cut else (False,):
            places = _places([each for each in candidates if fits(each, shorter)], rows, free=free)
            if places is not None:
                length = places[0][0].given_tokens().shape[1]
                width = None if rows.shape[1] == length else rows.shape[1]
                if free and shorter and _is_all(places):
                    return Found(places[0][0], (), width, shorter)
                return Found(None, places, width, shorter, None if rows.shape == fed.shape else fed.shape)
    return None


def _as_rows(snapshots: Sequence[Snapshot], fed: Array) -> Iterable[tuple[Array, Callable[[Snapshot, bool], bool]]]:
    """The ways to read `fed` as rows, and which micro-batches may have them, whole or (cut) more of them."""
    if not fed.size:
        return
    lengths = dict.fromkeys(snapshot.given_tokens().shape[1] for snapshot in snapshots)
    if fed.ndim >= 2:
        width = fed.shape[-1]
        longest = max(lengths, default=0)
        if width <= longest:
            yield (
                fed.reshape(-1, width),
                lambda each, cut: (
                    (each.columns is None and each.given_tokens().shape[1] - width > 1)
                    if cut
                    else 0 <= each.given_tokens().shape[1] - width <= 1
                ),
            )
    for length in lengths:
        if fed.size % length == 0 and (fed.ndim == 1 or fed.shape[-1] != length):
            yield (
                fed.reshape(-1, length),
                lambda each, cut, length=length: not cut and each.given_tokens().shape[1] == length,  # type: ignore[misc]
            )


def _is_all(places: Sequence[Place]) -> bool:
    """Whether these are the rows of one micro-batch, all and in their order, of which none was consumed."""
    first = places[0][0]
    return (
        first.uses is None
        and all(snapshot is first for snapshot, _ in places)
        and [row for _, row in places] == list(range(first.num_slots))
    )


def _places(snapshots: Sequence[Snapshot], rows: Array, *, free: bool) -> tuple[Place, ...] | None:
    width = rows.shape[1]
    wanted: dict[bytes, list[int]] = {}
    for at, key in enumerate(_keys(rows)):
        wanted.setdefault(key, []).append(at)
    found: list[Place | None] = [None] * len(rows)
    missing = len(rows)
    for snapshot in snapshots:
        ours = snapshot.given_tokens()
        length = ours.shape[1]
        if places_differ(found, length):
            continue
        usable = snapshot.free_rows() if free else np.ones(snapshot.num_slots, bool)
        for row, key in enumerate(_keys(ours[:, :width])):
            if not usable[row]:
                continue
            for at in wanted.get(key, ()):
                if found[at] is None and np.array_equal(ours[row, :width], rows[at]):
                    found[at] = (snapshot, row)
                    missing -= 1
                    if free:
                        break
        if not missing:
            return tuple(place for place in found if place is not None)
    return None


def places_differ(found: Sequence[Place | None], length: int) -> bool:
    """Whether rows of another length were found already: a tensor has rows of one."""
    return any(place is not None and place[0].given_tokens().shape[1] != length for place in found)


def _keys(rows: Array) -> list[bytes]:
    step = max(1, rows.shape[1] // _SAMPLES)
    few: npt.NDArray[np.int64] = np.ascontiguousarray(rows[:, ::step], np.int64)
    return [row.tobytes() for row in few]


def _equal(ours: Array, fed: Array) -> bool:
    """Whether all are the same numbers."""
    step = max(1, ours.shape[1] // _SAMPLES)
    return bool((ours[0, ::step] == fed[0, ::step]).all()) and bool(np.array_equal(ours, fed))
