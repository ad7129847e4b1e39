"""Token ranges [start, end) of a document as i64 [n, 2]: joined, measured, counted."""

import numpy as np
import numpy.typing as npt

__all__ = ["covered", "overlap", "times_covered"]

Ranges = npt.NDArray[np.int64]


def covered(ranges: Ranges) -> Ranges:
    """The tokens that are in any range, as ranges that ascend and do not touch."""
    ranges = ranges[ranges[:, 0] < ranges[:, 1]]
    if not len(ranges):
        return ranges
    ordered = ranges[np.argsort(ranges[:, 0], kind="stable")]
    reach = np.maximum.accumulate(ordered[:, 1])
    firsts = np.flatnonzero(np.append(True, ordered[1:, 0] > reach[:-1]))
    lasts = np.append(firsts[1:], len(ordered)) - 1
    return np.stack([ordered[firsts, 0], reach[lasts]], axis=1)


def overlap(joined: Ranges, start: int, end: int) -> int:
    """How many tokens of [start, end) lie in `joined`, which is as `covered` gives it."""
    first = int(np.searchsorted(joined[:, 1], start, side="right"))
    last = int(np.searchsorted(joined[:, 0], end, side="left"))
    part = np.clip(joined[first:last], start, end)
    return int((part[:, 1] - part[:, 0]).sum())


def times_covered(ranges: Ranges) -> tuple[tuple[int, int], ...]:
    """(times, tokens): how many tokens lie in exactly so many ranges; only times ≥ 1 that occur."""
    edges, inverse = np.unique(ranges, return_inverse=True)
    change = np.bincount(inverse.reshape(-1, 2)[:, 0], minlength=len(edges)) - np.bincount(
        inverse.reshape(-1, 2)[:, 1], minlength=len(edges)
    )
    times = np.cumsum(change)[:-1]
    tokens = np.bincount(times, weights=np.diff(edges)) if len(times) else np.zeros(1)
    return tuple((number, int(tokens[number])) for number in np.flatnonzero(tokens).tolist() if number)
