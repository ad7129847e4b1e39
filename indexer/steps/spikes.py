"""Compiled: which values of a series may be spikes by the rule of `steps`, so that few are judged with care.

What is left out certainly is none; what is named need not be one. `SLACK` is for the last digits of the arithmetic.
"""

import numpy as np
from numpy.typing import NDArray

from indexer.jit import jit

__all__ = ["spike_candidates"]

SLACK = 1 - 1e-9
Floats = NDArray[np.float64]


@jit
def spike_candidates(
    values: Floats, first: int, window: int, threshold: float, floor: float, mad_to_sigma: float
) -> NDArray[np.bool_]:
    """Whether each of values[first:], all finite, may be a spike among the `window` (at most `first`) before it; bool."""
    found = np.zeros(len(values) - first, np.bool_)
    half = window // 2
    gaps, level = np.empty(half), np.empty(window)
    for j in range(half):
        gaps[j] = values[first - half + j] - values[first - window + j]
    gaps.sort()
    for place in range(first, len(values)):
        if place > first:
            _replace(
                gaps,
                values[place - 1 - half] - values[place - 1 - window],
                values[place - 1] - values[place - 1 - half],
            )
        middle = gaps[half // 2] if half % 2 else (gaps[half // 2 - 1] + gaps[half // 2]) / 2
        slope = middle / (window - half)
        value = values[place] - max(slope, 0.0) * (window + 1) / 2
        below = 0
        for k in range(window):
            level[k] = values[place - window + k] - slope * (k - (window - 1) / 2)
            below += level[k] <= value
        if below < window // 2:
            continue
        center = _median(level)
        above = value - center
        if not above > threshold * floor * abs(center) * SLACK:
            continue
        near = 0
        for k in range(window):
            near += abs(level[k] - center) * threshold * mad_to_sigma * SLACK < above
        found[place - first] = near >= window // 2
    return found


@jit
def _replace(ascending: Floats, old: float, new: float) -> None:
    """Put `new` where `old` was, and keep the order."""
    k = np.searchsorted(ascending, old)
    while k + 1 < len(ascending) and ascending[k + 1] < new:
        ascending[k] = ascending[k + 1]
        k += 1
    while k > 0 and ascending[k - 1] > new:
        ascending[k] = ascending[k - 1]
        k -= 1
    ascending[k] = new


@jit
def _median(values: Floats) -> float:
    """The median; changes the order of the values."""
    upper = len(values) // 2
    low, high = 0, len(values) - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if upper <= j:
            high = j
        elif upper >= i:
            low = i
        else:
            break
    if len(values) % 2:
        return float(values[upper])
    below = values[0]
    for k in range(1, upper):
        below = max(below, values[k])
    return float((below + values[upper]) / 2)
