"""Repetition inside a sequence: the share of its tokens that lie in a token 8-gram which the sequence holds more than once.

Every occurrence counts, the first as well; occurrences may overlap. Exact: equal hashes are compared token by token.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.jit import jit

__all__ = ["GRAM", "repeated_shares"]

GRAM = 8
BASE = 0x9E3779B97F4A7C15


def repeated_shares(tokens: NDArray[Any], starts: NDArray[np.int64], gram: int = GRAM) -> NDArray[np.float32]:
    """Share of each sequence's tokens that are in a repeated n-gram, f32 [s].

    Sequence i is tokens[starts[i]:starts[i + 1]], starts i64 [s + 1]; an empty one has the share 0.
    """
    shares = np.zeros(len(starts) - 1, np.float32)
    longest = int(np.diff(starts).max(initial=0))
    slots = np.empty(1 << max(4, (2 * longest - 1).bit_length()), np.int32)
    _fill_shares(tokens, starts, gram, slots, np.empty(longest, np.uint8), shares)
    return shares


@jit
def _same(tokens: NDArray[Any], first: int, second: int, length: int) -> bool:
    k = 0
    while k < length and tokens[first + k] == tokens[second + k]:
        k += 1
    return k == length


@jit
def _fill_shares(
    tokens: NDArray[Any],
    starts: NDArray[np.int64],
    gram: int,
    slots: NDArray[np.int32],
    repeated: NDArray[np.uint8],
    shares: NDArray[np.float32],
) -> None:
    """slots: a hash table of the n-grams' first places, a power of two; repeated: whether an n-gram that begins there is."""
    base = np.uint64(BASE)
    top = np.uint64(1)
    for _ in range(gram - 1):
        top *= base
    mask = np.uint64(len(slots) - 1)
    for sequence in range(len(shares)):
        start, length = starts[sequence], starts[sequence + 1] - starts[sequence]
        if length < gram + 1:
            continue
        slots[:] = -1
        repeated[:length] = 0
        rolling = np.uint64(0)
        for k in range(gram - 1):
            rolling = rolling * base + np.uint64(tokens[start + k]) + np.uint64(1)
        for place in range(length - gram + 1):
            rolling = rolling * base + np.uint64(tokens[start + place + gram - 1]) + np.uint64(1)
            slot = ((rolling ^ (rolling >> np.uint64(32))) * base >> np.uint64(32)) & mask
            while slots[slot] >= 0 and not _same(tokens, start + slots[slot], start + place, gram):
                slot = (slot + np.uint64(1)) & mask
            if slots[slot] < 0:
                slots[slot] = place
            else:
                repeated[slots[slot]] = 1
                repeated[place] = 1
            rolling -= (np.uint64(tokens[start + place]) + np.uint64(1)) * top
        inside, end = 0, 0
        for place in range(length):
            if repeated[place]:
                end = place + gram
            inside += place < end
        shares[sequence] = inside / length
