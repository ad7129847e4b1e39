"""Which sequences count: a range of ordinals, a bitmap over ordinals, or both.

A step range is a contiguous range of sequence ordinals, hence of token positions, and a position answers by two
comparisons. Everything else (lineage, data-parallel rank, source) is a bitmap with one entry a sequence. A match never
crosses a sequence, so that a suffix passes exactly if the sequence that it starts in passes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Filter"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Sequences whose ordinal is in [first, last) and whose bitmap entry, if there is a bitmap, is not zero.

    `last=None` means to the end of the shard; a range may reach beyond the shard, and may be empty. `passing` is
    bool | u8 [num_sequences], one entry a sequence of the shard (not of the range).
    """

    first: int = 0
    last: int | None = None
    passing: NDArray[np.bool_] | NDArray[np.uint8] | None = None
