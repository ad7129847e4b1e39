"""A filter made ready for one shard.

A bitmap is prepared before use: the shard's positions are cut into at most 65,536 equal stretches, and those with a
passing sequence are marked. A thin bitmap turns most positions away by one look at the marks. That costs one pass over
the bitmap; who asks several questions under the same one prepares it once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.spans.arrays import SpanArrays, SpanIndexError
from indexer.spans.filters import Filter
from indexer.spans.kernels.packing import Chosen, mark_stretches

__all__ = ["PreparedFilter", "filter_row", "prepare"]

MAX_STRETCHES = 65_536
NONE: NDArray[np.uint8] = np.zeros(0, np.uint8)
NONE.setflags(write=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedFilter:
    """A filter in the form that the kernels take, for one shard: position range, bitmap, marks, log2 of the stretch."""

    chosen: Chosen


def filter_row(arrays: SpanArrays, chosen: Filter | PreparedFilter | None) -> tuple[int, ...]:
    """A prepared filter as numbers: first and end position, address and length of bitmap and marks, log2 of a stretch.

    By it a kernel opens the filters of any number of shards; it holds as long as the prepared filter does.
    """
    if chosen is None:
        return 0, arrays.num_tokens, 0, 0, 0, 0, 0
    first, end, passing, marks, shift = prepare(arrays, chosen).chosen
    if len(passing) == 0:
        return first, end, 0, 0, 0, 0, 0
    return first, end, passing.ctypes.data, len(passing), marks.ctypes.data, len(marks), shift


def prepare(arrays: SpanArrays, chosen: Filter | PreparedFilter | None) -> PreparedFilter:
    """Prepare a filter for a shard, worth doing once if several questions follow under a bitmap.

    Raises SpanIndexError for a bitmap of another length or dtype than the shard's. A prepared filter comes back as is.
    """
    if isinstance(chosen, PreparedFilter):
        return chosen
    if chosen is None:
        return PreparedFilter(chosen=(0, arrays.num_tokens, NONE, NONE, 0))
    first = min(max(chosen.first, 0), arrays.num_sequences)
    last = arrays.num_sequences if chosen.last is None else min(max(chosen.last, first), arrays.num_sequences)
    begin, end = (min(int(arrays.sequence_starts[at]), arrays.num_tokens) for at in (first, last))
    begin = max(begin, 0)
    if chosen.passing is None:
        return PreparedFilter(chosen=(begin, end, NONE, NONE, 0))
    passing = bitmap(arrays, chosen.passing)
    shift = max(0, (arrays.num_tokens - 1).bit_length() - (MAX_STRETCHES - 1).bit_length())
    marks = mark_stretches(arrays.sequence_starts, passing, shift)
    marks.setflags(write=False)
    return PreparedFilter(chosen=(begin, end, passing, marks, shift))


def bitmap(arrays: SpanArrays, passing: NDArray[Any]) -> NDArray[np.uint8]:
    """The bitmap as read-only, contiguous u8."""
    if passing.dtype not in (np.dtype(np.bool_), np.dtype(np.uint8)) or passing.shape != (arrays.num_sequences,):
        raise SpanIndexError(
            f"filter bitmap: expected bool or uint8 [{arrays.num_sequences}], one entry a sequence, "
            f"found {passing.dtype} {list(passing.shape)}; build it for this shard"
        )
    entries = np.ascontiguousarray(passing).view(np.uint8)
    entries.setflags(write=False)
    return entries
