"""Which sequences count: a range of ordinals, a bitmap over ordinals, or both.

A step range is a contiguous range of sequence ordinals, hence of token positions, and a position answers by two
comparisons. Everything else (lineage, data-parallel rank, source) is a bitmap with one entry a sequence. A match never
crosses a sequence, so that a suffix passes exactly if the sequence that it starts in passes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.spans.arrays import SpanArrays, SpanIndexError

__all__ = ["Filter"]

NO_BITMAP: NDArray[np.uint8] = np.zeros(0, np.uint8)
NO_BITMAP.setflags(write=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Sequences whose ordinal is in [first, last) and whose bitmap entry, if there is a bitmap, is not zero.

    `last=None` means to the end of the shard; a range may reach beyond the shard, and may be empty. `passing` is
    bool | u8 [num_sequences], one entry a sequence of the shard (not of the range).
    """

    first: int = 0
    last: int | None = None
    passing: NDArray[np.bool_] | NDArray[np.uint8] | None = None


def resolve(arrays: SpanArrays, chosen: Filter | None) -> tuple[int, int, NDArray[np.uint8]]:
    """(first position, end position, bitmap u8 [s] or [0] for none) as the kernels take it.

    Raises SpanIndexError for a bitmap of another length or dtype than the shard's.
    """
    if chosen is None:
        return 0, arrays.num_tokens, NO_BITMAP
    first = min(max(chosen.first, 0), arrays.num_sequences)
    last = arrays.num_sequences if chosen.last is None else min(max(chosen.last, first), arrays.num_sequences)
    bounds = int(arrays.sequence_starts[first]), int(arrays.sequence_starts[last])
    return *bounds, NO_BITMAP if chosen.passing is None else bitmap(arrays, chosen.passing)


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
