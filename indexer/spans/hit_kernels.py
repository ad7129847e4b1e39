"""Compiled walks over the hits of a range of suffix ranks, under a filter.

No walk materialises hits. Blocks without a passing position are skipped by their range; a block that lies wholly inside
an answer is taken by its range.
"""

import numpy as np

from indexer.spans.arrays import BLOCK, SUPERBLOCK
from indexer.spans.jit import jit
from indexer.spans.kernels import (
    I32,
    I64,
    LANE,
    SCANNED,
    Chosen,
    Shard,
    passes,
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
def next_passing(shard: Shard, chosen: Chosen, lo: int, hi: int, work: I64) -> int:
    """Smallest rank in [lo, hi) whose suffix passes, or -1."""
    _, suffix_array, _, _, block_range, superblock_range, sequence_starts = shard
    first, end = chosen[0], chosen[1]
    rank = lo
    while rank < hi:
        rank = skip_blocks(block_range, superblock_range, rank, first, end)
        stop = min(hi, (rank // BLOCK + 1) * BLOCK)
        while rank < stop:
            work[SCANNED] += 1
            if rank + LANE <= stop and not any_inside(suffix_array, rank, first, end):
                rank += LANE
                continue
            position = int(suffix_array[np.uint64(rank)])
            if passes(sequence_starts, chosen, position):
                return rank
            rank += 1
    return -1


@jit
def previous_passing(shard: Shard, chosen: Chosen, lo: int, hi: int, work: I64) -> int:
    """Largest rank in [lo, hi) whose suffix passes, or -1."""
    _, suffix_array, _, _, block_range, superblock_range, sequence_starts = shard
    first, end = chosen[0], chosen[1]
    rank = hi - 1
    while rank >= lo:
        rank = skip_blocks_down(block_range, superblock_range, rank, first, end)
        stop = max(lo, rank // BLOCK * BLOCK)
        while rank >= stop:
            work[SCANNED] += 1
            if rank - LANE + 1 >= stop and not any_inside(suffix_array, rank - LANE + 1, first, end):
                rank -= LANE
                continue
            position = int(suffix_array[np.uint64(rank)])
            if passes(sequence_starts, chosen, position):
                return rank
            rank -= 1
    return -1


@jit
def count_passing(shard: Shard, chosen: Chosen, lo: int, hi: int) -> int:
    """How many of the suffixes [lo, hi) pass."""
    _, suffix_array, _, _, block_range, superblock_range, sequence_starts = shard
    first, end, passing = chosen[0], chosen[1], chosen[2]
    if len(passing) == 0 and first == 0 and end >= len(suffix_array):
        return hi - lo
    if first >= end:
        return 0
    total = 0
    rank = lo
    while rank < hi:
        rank = skip_blocks(block_range, superblock_range, rank, first, end)
        block = rank // BLOCK
        stop = min(hi, (block + 1) * BLOCK)
        if rank >= stop:
            break
        if len(passing) > 0:
            for i in range(rank, stop):
                position = int(suffix_array[i])
                total += passes(sequence_starts, chosen, position)
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
    _, suffix_array, _, _, block_range, superblock_range, sequence_starts = shard
    first, end, passing = chosen[0], chosen[1], chosen[2]
    smallest, largest = end, first - 1
    rank = lo
    while rank < hi:
        size, ranges = BLOCK, block_range
        if rank % SUPERBLOCK == 0 and rank + SUPERBLOCK <= hi:
            size, ranges = SUPERBLOCK, superblock_range
        unit = rank // size
        low, high = int(ranges[unit, 0]), int(ranges[unit, 1])
        stop = min(hi, (unit + 1) * size)
        if (max(low, first) >= smallest and min(high, end - 1) <= largest) or high < first or low >= end:
            rank = stop
        elif len(passing) == 0 and low >= first and high < end and rank == unit * size and stop == rank + size:
            smallest, largest = min(smallest, low), max(largest, high)
            rank = stop
        else:
            stop = min(hi, (rank // BLOCK + 1) * BLOCK)
            for lane in range(rank, stop, LANE):
                if lane + LANE <= stop and not (
                    any_inside(suffix_array, lane, first, smallest) or any_inside(suffix_array, lane, largest + 1, end)
                ):
                    continue
                for i in range(lane, min(lane + LANE, stop)):
                    position = int(suffix_array[np.uint64(i)])
                    if (position < smallest or position > largest) and passes(sequence_starts, chosen, position):
                        smallest, largest = min(smallest, position), max(largest, position)
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
    _, suffix_array, _, _, block_range, superblock_range, sequence_starts = shard
    first, end, plain = max(chosen[0], edges[0]), min(chosen[1], edges[-1]), len(chosen[2]) == 0
    shift = 0
    while (end - first) >> shift >= HINTS:
        shift += 1
    hints = np.empty(HINTS + 1, np.int64)
    for bucket in range(HINTS + 1):
        hints[bucket] = bin_of(edges, 0, len(counts) - 1, first + (bucket << shift))
    rank = lo
    while rank < hi:
        rank = skip_blocks(block_range, superblock_range, rank, first, end)
        stop = min(hi, (rank // BLOCK + 1) * BLOCK)
        for i in range(rank, stop):
            position = int(suffix_array[np.uint64(i)])
            if first <= position < end and (plain or passes(sequence_starts, chosen, position)):
                bucket = (position - first) >> shift
                counts[bin_of(edges, hints[bucket], hints[bucket + 1], position)] += 1
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
    _, suffix_array, _, _, block_range, superblock_range, sequence_starts = shard
    first, end = chosen[0], chosen[1]
    kept = 0
    rank = lo
    while rank < hi and len(heap) > 0:
        rank = skip_blocks(block_range, superblock_range, rank, first, end)
        stop = min(hi, (rank // BLOCK + 1) * BLOCK)
        for lane in range(rank, stop, LANE):
            if lane + LANE <= stop and not any_inside(suffix_array, lane, first, end):
                continue
            for i in range(lane, min(lane + LANE, stop)):
                position = int(suffix_array[np.uint64(i)])
                if position < first or position >= end or not passes(sequence_starts, chosen, position):
                    continue
                at = kept if kept < len(heap) else 0
                heap[at] = -position if descending else position
                if kept < len(heap):
                    kept += 1
                    for parent in range(kept // 2 - 1 if kept == len(heap) else -1, -1, -1):
                        sift_down(heap, kept, parent)
                else:
                    sift_down(heap, kept, at)
                if kept == len(heap) and descending:
                    first = -heap[0] + 1
                elif kept == len(heap):
                    end = heap[0]
        rank = max(stop, rank)
    return kept
