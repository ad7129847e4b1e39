"""Compiled counting of token n-grams. An n-gram lies within one row; its key is a 64-bit hash, never 0.

Hash tables are open: keys u64 [power of two], 0 for a free slot.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.jit import jit

__all__ = ["count_ngrams", "new_pair_shares", "num_rows_with", "shared_shares", "table_size"]

BASE = 0x9E3779B97F4A7C15
Counts = NDArray[np.int32]


def table_size(num_keys: int) -> int:
    """Slots of a table for so many keys."""
    return 1 << max(4, (2 * num_keys - 1).bit_length())


@jit
def _key(tokens: NDArray[Any], start: int, order: int) -> np.uint64:
    mixed = np.uint64(order)
    for k in range(order):
        mixed = (mixed ^ np.uint64(tokens[start + k])) * np.uint64(BASE)
        mixed ^= mixed >> np.uint64(29)
    return mixed | np.uint64(1)


@jit
def _slot(keys: NDArray[np.uint64], key: np.uint64) -> int:
    """Where the key is, or the free slot where it would be."""
    mask = np.uint64(len(keys) - 1)
    slot = (key * np.uint64(BASE) >> np.uint64(32)) & mask
    while keys[slot] != 0 and keys[slot] != key:
        slot = (slot + np.uint64(1)) & mask
    return int(slot)


@jit
def count_ngrams(
    tokens: NDArray[Any],
    starts: NDArray[np.int64],
    order: int,
    keys: NDArray[np.uint64],
    firsts: NDArray[np.int64],
    counts: Counts,
    add: bool,
) -> int:
    """Add each n-gram of the rows to `counts`; those not in the table are put in if `add`, else passed over.

    firsts: where the n-gram first stands in `tokens`. Returns how many n-grams there are.
    """
    total = 0
    for row in range(len(starts) - 1):
        for place in range(starts[row], starts[row + 1] - order + 1):
            total += 1
            key = _key(tokens, place, order)
            slot = _slot(keys, key)
            if keys[slot] == key:
                counts[slot] += 1
            elif add:
                keys[slot], firsts[slot], counts[slot] = key, place, 1
    return total


@jit
def num_rows_with(tokens: NDArray[Any], starts: NDArray[np.int64], wanted: NDArray[Any]) -> int:
    """How many rows hold the n-gram `wanted`."""
    count, order = 0, len(wanted)
    for row in range(len(starts) - 1):
        for place in range(starts[row], starts[row + 1] - order + 1):
            k = 0
            while k < order and tokens[place + k] == wanted[k]:
                k += 1
            if k == order:
                count += 1
                break
    return count


@jit
def _enter(
    tokens: NDArray[Any],
    starts: NDArray[np.int64],
    order: int,
    keys: NDArray[np.uint64],
    rows: Counts,
    shared: NDArray[np.uint8],
) -> None:
    """Enter each n-gram: the first row that holds it, and whether another one does too."""
    for row in range(len(starts) - 1):
        for place in range(starts[row], starts[row + 1] - order + 1):
            key = _key(tokens, place, order)
            slot = _slot(keys, key)
            if keys[slot] == 0:
                keys[slot], rows[slot] = key, row
            elif rows[slot] != row:
                shared[slot] = 1


@jit
def _fill_new_pairs(
    tokens: NDArray[Any],
    starts: NDArray[np.int64],
    keys: NDArray[np.uint64],
    rows: Counts,
    shared: NDArray[np.uint8],
    own: bool,
    shares: NDArray[np.float64],
) -> None:
    for row in range(len(starts) - 1):
        new, total = 0, starts[row + 1] - 1 - starts[row]
        for place in range(starts[row], starts[row + 1] - 1):
            slot = _slot(keys, _key(tokens, place, 2))
            new += keys[slot] == 0 or (own and rows[slot] == row and shared[slot] == 0)
        if total > 0:
            shares[row] = new / total


@jit
def _fill_shared(
    tokens: NDArray[Any],
    starts: NDArray[np.int64],
    order: int,
    keys: NDArray[np.uint64],
    shared: NDArray[np.uint8],
    shares: NDArray[np.float64],
) -> None:
    for row in range(len(starts) - 1):
        inside, end = 0, 0
        for place in range(starts[row], starts[row + 1]):
            if place <= starts[row + 1] - order and shared[_slot(keys, _key(tokens, place, order))]:
                end = place + order
            inside += place < end
        if starts[row + 1] > starts[row]:
            shares[row] = inside / (starts[row + 1] - starts[row])


def shared_shares(tokens: NDArray[Any], starts: NDArray[np.int64], order: int) -> NDArray[np.float64]:
    """Share of each row's tokens in an n-gram that another of the rows holds too, f64."""
    keys = np.zeros(table_size(len(tokens)), np.uint64)
    shared, shares = np.zeros(len(keys), np.uint8), np.zeros(len(starts) - 1)
    _enter(tokens, starts, order, keys, np.zeros(len(keys), np.int32), shared)
    _fill_shared(tokens, starts, order, keys, shared, shares)
    return shares


def new_pair_shares(
    window: tuple[NDArray[Any], NDArray[np.int64]], step: tuple[NDArray[Any], NDArray[np.int64]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(of each window row, of each step row): share of its pairs of neighbours that no (other) row of the window holds."""
    keys = np.zeros(table_size(len(window[0])), np.uint64)
    rows, shared = np.zeros(len(keys), np.int32), np.zeros(len(keys), np.uint8)
    _enter(*window, 2, keys, rows, shared)
    of_window, of_step = np.zeros(len(window[1]) - 1), np.zeros(len(step[1]) - 1)
    _fill_new_pairs(*window, keys, rows, shared, True, of_window)
    _fill_new_pairs(*step, keys, rows, shared, False, of_step)
    return of_window, of_step
