"""Compiled walks over the hits of a range of suffix ranks, under a filter.

Rules:

1. No walk materialises hits: it goes from block to block. Blocks without a passing position are skipped by their range; a
   block that lies wholly inside an answer is taken by its range; of the others `select` picks the passing ranks.
2. What runs once a hit takes no array as an argument and leaves no function early: numba would count references to the
   arrays, atomically, at ten times the cost of the work.
"""

import numpy as np

from indexer.jit import jit
from indexer.spans.arrays import RANGE, SUPERBLOCK
from indexer.spans.kernels.packing import (
    ALIKE,
    I32,
    I64,
    LANE,
    SCANNED,
    Chosen,
    Shard,
    least_difference,
    ordinal_at,
    skip_blocks,
    skip_blocks_down,
)

HINTS = 1024


@jit
def any_inside(suffix_array: I32, rank: int, first: int, end: int) -> bool:
    """Whether one of the LANE suffixes from `rank` on starts in the positions [first, end)."""
    found = False
    for j in range(LANE):
        position = suffix_array[np.uint64(rank + j)]
        found |= (position >= first) & (position < end)
    return found


@jit
def select(shard: Shard, chosen: Chosen, lo: int, hi: int, first: int, end: int, ranks: I64) -> int:
    """Write the ranks of [lo, hi), at most RANGE of them, that pass and start in [first, end) to `ranks`; returns how many.

    [first, end) is the filter's own range of positions or a part of it.
    """
    suffix_array, sequence_starts = shard[1], shard[6]
    passing, marks, shift = chosen[2], chosen[3], np.uint64(chosen[4])
    bitmap = len(passing) > 0
    num = 0
    for lane in range(lo, hi, LANE):
        if lane + LANE <= hi and not any_inside(suffix_array, lane, first, end):
            continue
        for rank in range(lane, min(lane + LANE, hi)):
            position = int(suffix_array[np.uint64(rank)])
            if position < first or position >= end:
                continue
            if bitmap and marks[np.uint64(position) >> shift] == 0:
                continue
            if bitmap and passing[ordinal_at(sequence_starts, position)] == 0:
                continue
            ranks[num] = rank
            num += 1
    return num


@jit
def alike_passing(shard: Shard, chosen: Chosen, lo: int, hi: int, wanted: np.uint16) -> bool:
    """Whether one of the suffixes [lo, hi) passes whose fingerprint agrees with `wanted` about the first SHORT tokens."""
    suffix_array, fingerprints, sequence_starts = shard[1], shard[2], shard[6]
    first, end, passing, marks, shift = chosen
    found = False
    for lane in range(lo, hi, LANE):
        if found or (lane + LANE <= hi and least_difference(fingerprints, lane, lane + LANE, wanted) >= ALIKE):
            continue
        for rank in range(lane, min(lane + LANE, hi)):
            if not found and np.uint16(fingerprints[np.uint64(rank)] ^ wanted) < ALIKE:
                position = int(suffix_array[np.uint64(rank)])
                if first <= position < end:
                    found = len(passing) == 0 or (
                        marks[np.uint64(position) >> np.uint64(shift)] != 0
                        and passing[ordinal_at(sequence_starts, position)] != 0
                    )
    return found


@jit
def outermost(shard: Shard, chosen: Chosen, lo: int, hi: int, last: bool) -> int:
    """The first of the ranks [lo, hi) whose suffix passes, or the last one; -1 if none does."""
    suffix_array, sequence_starts = shard[1], shard[6]
    first, end, passing, marks, shift = chosen
    found, num_lanes = -1, (hi - lo + LANE - 1) // LANE
    for k in range(num_lanes):
        lane = lo + LANE * (num_lanes - 1 - k if last else k)
        if found >= 0 or (lane + LANE <= hi and not any_inside(suffix_array, lane, first, end)):
            continue
        for rank in range(lane, min(lane + LANE, hi)):
            position = int(suffix_array[np.uint64(rank)])
            if first <= position < end and (last or found < 0):
                passes = len(passing) == 0 or (
                    marks[np.uint64(position) >> np.uint64(shift)] != 0
                    and passing[ordinal_at(sequence_starts, position)] != 0
                )
                found = rank if passes else found
    return found


@jit
def next_passing(shard: Shard, chosen: Chosen, lo: int, hi: int, work: I64) -> int:
    """Smallest rank in [lo, hi) whose suffix passes, or -1."""
    rank = lo
    while rank < hi:
        rank = skip_blocks(shard[4], shard[5], rank, chosen[0], chosen[1])
        stop = min(hi, (rank // RANGE + 1) * RANGE)
        if rank < stop:
            work[SCANNED] += stop - rank
            found = outermost(shard, chosen, rank, stop, False)
            if found >= 0:
                return found
        rank = max(rank, stop)
    return -1


@jit
def previous_passing(shard: Shard, chosen: Chosen, lo: int, hi: int, work: I64) -> int:
    """Largest rank in [lo, hi) whose suffix passes, or -1."""
    rank = hi - 1
    while rank >= lo:
        rank = skip_blocks_down(shard[4], shard[5], rank, chosen[0], chosen[1])
        begin = max(lo, rank // RANGE * RANGE)
        if rank >= begin:
            work[SCANNED] += rank + 1 - begin
            found = outermost(shard, chosen, begin, rank + 1, True)
            if found >= 0:
                return found
        rank = min(rank, begin - 1)
    return -1


@jit
def count_passing(shard: Shard, chosen: Chosen, lo: int, hi: int) -> int:
    """How many of the suffixes [lo, hi) pass."""
    suffix_array, block_range = shard[1], shard[4]
    first, end, bitmap = chosen[0], chosen[1], len(chosen[2]) > 0
    if not bitmap and first <= 0 and end >= len(suffix_array):
        return hi - lo
    ranks = np.empty(RANGE, np.int64)
    total = 0
    rank = lo if first < end else hi
    while rank < hi:
        rank = skip_blocks(block_range, shard[5], rank, first, end)
        block = rank // RANGE
        stop = min(hi, (block + 1) * RANGE)
        if rank >= stop:
            break
        if bitmap:
            total += select(shard, chosen, rank, stop, first, end, ranks)
        elif block_range[block, 0] >= first and block_range[block, 1] < end:
            total += stop - rank
        else:
            for i in range(rank, stop):
                total += (suffix_array[np.uint64(i)] >= first) & (suffix_array[np.uint64(i)] < end)
        rank = stop
    return total


@jit
def extent_passing(shard: Shard, chosen: Chosen, lo: int, hi: int) -> tuple[int, int]:
    """Smallest and largest passing position among the suffixes [lo, hi), or (-1, -1).

    A block is looked into only while it can widen the answer.
    """
    suffix_array, block_range, superblock_range = shard[1], shard[4], shard[5]
    first, end, bitmap = chosen[0], chosen[1], len(chosen[2]) > 0
    ranks = np.empty(RANGE, np.int64)
    smallest, largest = end, first - 1
    rank = lo
    while rank < hi:
        size, ranges = RANGE, block_range
        if rank % SUPERBLOCK == 0 and rank + SUPERBLOCK <= hi:
            size, ranges = SUPERBLOCK, superblock_range
        unit = rank // size
        low, high = int(ranges[unit, 0]), int(ranges[unit, 1])
        stop = min(hi, (unit + 1) * size)
        if (max(low, first) >= smallest and min(high, end - 1) <= largest) or high < first or low >= end:
            rank = stop
        elif not bitmap and low >= first and high < end and rank == unit * size and stop == rank + size:
            smallest, largest = min(smallest, low), max(largest, high)
            rank = stop
        else:
            stop = min(hi, (rank // RANGE + 1) * RANGE)
            for i in range(select(shard, chosen, rank, stop, first, smallest, ranks)):
                position = int(suffix_array[ranks[i]])
                smallest, largest = min(smallest, position), max(largest, position)
            for i in range(select(shard, chosen, rank, stop, largest + 1, end, ranks)):
                largest = max(largest, int(suffix_array[ranks[i]]))
            rank = stop
    return (smallest, largest) if largest >= first else (-1, -1)


@jit
def bin_of(edges: I64, lo: int, hi: int, position: int) -> int:
    """The last bin in [lo, hi] whose edge is not above the position."""
    while lo < hi:
        mid = (lo + hi + 1) >> 1
        if edges[mid] <= position:
            lo = mid
        else:
            hi = mid - 1
    return lo


@jit
def histogram_passing(shard: Shard, chosen: Chosen, lo: int, hi: int, edges: I64, counts: I64) -> None:
    """Add the passing suffixes [lo, hi) to counts [k], where bin j holds the positions [edges[j], edges[j+1])."""
    suffix_array = shard[1]
    first, end = max(chosen[0], edges[0]), min(chosen[1], edges[-1])
    scale = 0
    while (end - first) >> scale >= HINTS:
        scale += 1
    hints, ranks = np.empty(HINTS + 1, np.int64), np.empty(RANGE, np.int64)
    for bucket in range(HINTS + 1):
        hints[bucket] = bin_of(edges, 0, len(counts) - 1, first + (bucket << scale))
    rank = lo if first < end else hi
    while rank < hi:
        rank = skip_blocks(shard[4], shard[5], rank, first, end)
        stop = min(hi, (rank // RANGE + 1) * RANGE)
        for i in range(select(shard, chosen, rank, stop, first, end, ranks)):
            position = int(suffix_array[ranks[i]])
            bucket = (position - first) >> scale
            at = hints[bucket]
            if at < hints[bucket + 1]:
                at = bin_of(edges, at, hints[bucket + 1], position)
            counts[at] += 1
        rank = max(stop, rank)


@jit
def sift_down(heap: I64, size: int, at: int) -> None:
    """Restore the max-heap heap[:size] below `at`."""
    while True:
        child = 2 * at + 1
        if child >= size:
            return
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[at] >= heap[child]:
            return
        heap[at], heap[child] = heap[child], heap[at]
        at = child


@jit
def page_passing(shard: Shard, chosen: Chosen, lo: int, hi: int, descending: bool, heap: I64) -> int:
    """Put the len(heap) smallest (descending: largest, negated) passing positions into heap, unsorted; returns how many.

    A full heap narrows the range of positions that are still wanted, by which whole blocks drop out.
    """
    suffix_array = shard[1]
    first, end = chosen[0], chosen[1]
    ranks = np.empty(RANGE, np.int64)
    kept = 0
    rank = lo if len(heap) > 0 else hi
    while rank < hi:
        rank = skip_blocks(shard[4], shard[5], rank, first, end)
        stop = min(hi, (rank // RANGE + 1) * RANGE)
        for i in range(select(shard, chosen, rank, stop, first, end, ranks)):
            position = int(suffix_array[ranks[i]])
            key = -position if descending else position
            if kept < len(heap):
                heap[kept] = key
                kept += 1
                for parent in range(kept // 2 - 1 if kept == len(heap) else -1, -1, -1):
                    sift_down(heap, kept, parent)
            elif key < heap[0]:
                heap[0] = key
                sift_down(heap, kept, 0)
        if kept == len(heap) and descending:
            first = -heap[0] + 1
        elif kept == len(heap):
            end = heap[0]
        rank = max(stop, rank)
    return kept
