"""Where a gram stands in the prefix tables of all shards of a group: one search of a table that has them merged.

Rules:

1. The merged table has every `stride`-th row of each shard's table, sorted, and who owns each (`SpanGroup`). A search of
   it, and a count of owners from the sample before, give the first row of any shard's table that is not below the gram.
2. `row_of` i64 [query] keeps the merged row of the gram at each place of the query, -1 until it was searched for: a gram is
   searched for once, whichever shards ask. Several searches advance together.
"""

from typing import TypeAlias

import numpy as np

from indexer.jit import jit, jit_inline, prefetch
from indexer.spans.arrays import BLOCK, GRAM, SHORT
from indexer.spans.kernels.packing import (
    I32,
    I64,
    SEARCHES,
    U64,
    Shard,
    Tokens,
    begins_alike,
    fingerprint,
    least_difference,
    pack,
    ranks_of_gram,
    short_ranks,
    table_bound,
    table_bounds,
)

__all__ = ["LINE", "ROWS", "Finder", "MergedTable", "find_rows", "first_rows", "ranks_in_shard"]

MergedTable: TypeAlias = tuple[U64, I32, I64, int, int]
"""(keys u64 [rows, words], owners i32 [rows], before i64 [ceil(rows / every), shards], every, stride), see `SpanGroup`."""
Finder: TypeAlias = tuple[MergedTable, I64, U64, I64]
"""The merged table, `row_of`, and room for the searches: keys u64 [ROWS, words] and numbers i64 [ROWS or more]."""
LINE = 64
"""Bytes of a cache line."""
ROWS = 8
"""Grams whose rows are found together."""


@jit_inline
def first_rows(table: MergedTable, row: int, rows: I64) -> None:
    """How many of the merged table's keys before `row` each shard owns, into rows [shards]."""
    owners, before, every = table[1], table[2], table[3]
    if len(owners) == 0:
        rows[0] = row
        return
    sample = row // every
    for shard in range(before.shape[1]):
        rows[shard] = before[sample, shard]
    for i in range(sample * every, row):
        rows[np.uint64(owners[np.uint64(i)])] += 1


@jit_inline
def find_rows(
    table: MergedTable, query: Tokens, places: tuple[int, int, int], keys: U64, firsts: I64, row_of: I64
) -> None:
    """The first row of the merged table not below the gram, for up to ROWS grams at probe, probe + stride …, together.

    `places` is (probe, stride, width); a gram at the query's end that has fewer than GRAM tokens is padded with 0.
    """
    probe, stride, width = places
    num = 0
    while num < width and probe + num * stride + SHORT <= len(query):
        pack(query, probe + num * stride, GRAM, 0, keys[num])
        num += 1
    table_bounds(table[0], keys, num, firsts)
    owners, before, every = table[1].ctypes.data, table[2].ctypes.data, table[3]
    for k in range(num):
        row_of[probe + k * stride] = firsts[k]
        sample, width = firsts[k] // every, 8 * table[2].shape[1]
        for line in range(0, width, LINE):
            prefetch(before + sample * width + line)
        for line in range(0, 4 * every, LINE):
            prefetch(owners + 4 * sample * every + line)


@jit
def row_in_shard(table: MergedTable, row: int, shard: int) -> int:
    """How many of the merged table's keys before `row` that shard owns."""
    owners, before, every = table[1], table[2], table[3]
    if len(owners) == 0:
        return row
    sample = row // every
    owned = before[sample, shard]
    for i in range(sample * every, row):
        owned += owners[np.uint64(i)] == shard
    return int(owned)


@jit
def ranks_in_shard(
    shard: Shard, number: int, finder: Finder, query: Tokens, start: int, length: int, work: I64
) -> tuple[int, int]:
    """`starting_ranks` of the shard with that number in the merged table."""
    if length < GRAM:
        return short_ranks(shard, query, start, length, work)
    table, row_of, keys, numbers = finder
    fingerprints, prefixes = shard[2], shard[3]
    if row_of[start] < 0:
        find_rows(table, query, (start, 1, ROWS), keys, numbers, row_of)
    work[SEARCHES] += 1
    key, stride = keys[0], table[4]
    pack(query, start, GRAM, 0, key)
    first = row_in_shard(table, row_of[start], number)
    if stride > 1:
        last = min(first * stride, len(prefixes))
        first = table_bound(prefixes[:last], max(first - 1, 0) * stride, key, False)
    after = table_bound(prefixes, first, key, True) if begins_alike(prefixes, first, key) else first
    lo = max(first - 1, 0) * BLOCK
    present = least_difference(fingerprints, lo, min(lo + BLOCK, len(fingerprints)), fingerprint(key)) == 0
    return ranks_of_gram(shard, key, first, present, after)
