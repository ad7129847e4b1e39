"""Compiled look-ups of grams in a group of shards, and what is remembered of them.

The rules of `group_kernels` say which grams are looked up, and where.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexer.jit import cycles, jit, jit_inline, prefetch, will_need
from indexer.spans.arrays import BLOCK, GRAM
from indexer.spans.kernels.hits import alike_passing, outermost
from indexer.spans.kernels.matches import NEAR, is_unfiltered
from indexer.spans.kernels.packing import (
    ALIKE,
    I64,
    SCANNED,
    SEARCHES,
    U64,
    ZERO,
    Tokens,
    begins_alike,
    chosen_of,
    fingerprint,
    least_difference,
    opened,
    pack,
    ranks_of_gram,
    table_bound,
)
from indexer.spans.kernels.table import LINE, ROWS, MergedTable, find_rows, first_rows

__all__ = [
    *(
        "AHEAD",
        "FIRST",
        "HI",
        "LO",
        "SLOTS",
        "STATE",
        "WHOLE",
        "Found",
        "Group",
        "Memory",
        "further_back",
        "is_filtered",
    ),
    *("lacks", "leave_out", "look_up", "slot_if_known", "to_ask"),
]

Found: TypeAlias = NDArray[np.int64]
Group: TypeAlias = tuple[I64, I64, I64, MergedTable]
"""Rows i64 [shards, ROW] and filters i64 [shards, 7] that open the shards and their filters, numbers i64 [shards] that are
their columns in the merged table, and that table."""
Memory: TypeAlias = tuple[I64, Found, I64, U64, I64, I64]
"""What is known of grams: their places known i64 [SLOTS], what the shards have of them grams i64 [SLOTS, shards, 3], and
`row_of` i64 [query]; and room: keys u64 [ROWS, words], counts i64 [shards or more], slots i64 [AHEAD]."""

FINGERPRINTS = 3
"""Column of `SpanArrays.row`."""
AHEAD, FEW, SLOTS = 4, 4, 8
"""Grams that are looked up together, in FEW shards; that are remembered."""
LO, HI, STATE = 0, 1, 2
"""Columns of what a shard has of a gram: its ranks, and one of the following."""
UNKNOWN, NOTHING, FIRST, WHOLE, PENDING, ALIKE_ROW = -1, 0, 1, 2, 3, 4
"""What a shard has of a gram. The last two: it was asked for, and maybe a row of the prefix table has its first tokens."""
STEP = 4
SLOW, SLOW_BLOCK = 40_000, 1_000
"""Cycles that a look-up takes at most, and for each block of fingerprints, if all is in memory. A disk takes more."""


@jit_inline
def slot_of(known: I64, probe: int, free: int, ranks: Found) -> int:
    """The slot of the gram at `probe`; if it has none, the slot `free`, emptied for it."""
    for slot in range(SLOTS):
        if known[slot] == probe:
            return slot
    known[free] = probe
    for shard in range(ranks.shape[1]):
        ranks[free, shard, STATE] = UNKNOWN
    return free


@jit_inline
def slot_if_known(known: I64, grams: Found, probe: int, asked: I64, num_asked: int) -> int:
    """The slot of the gram at `probe` if all shards that are asked know it, else -1."""
    for slot in range(SLOTS):
        if known[slot] == probe:
            for k in range(num_asked):
                if grams[slot, asked[k], STATE] == UNKNOWN:
                    return -1
            return slot
    return -1


@jit_inline
def to_ask(following: I64, at: int, asked: I64) -> int:
    """Write the shards that have not excluded `at` to `asked`; returns how many they are."""
    num = 0
    for i in range(len(following)):
        asked[num] = i
        num += following[i] <= at
    return num


@jit_inline
def lacks(grams: Found, slot: int, shard: int) -> bool:
    """Whether the shard is known not to have the whole gram of that slot."""
    return bool(NOTHING <= grams[slot, shard, STATE] < WHOLE)


@jit
def look_up(
    group: Group,
    query: Tokens,
    places: tuple[int, int, int],
    asked: I64,
    num_asked: int,
    slow: bool,
    memory: Memory,
    free: int,
    work: I64,
) -> tuple[int, int, bool]:
    """Look the gram at `probe` up in the shards asked[:num_asked]; in FEW shards up to `width` grams at
    probe, probe + stride … , `places` being (probe, stride, width).

    Into grams i64 [SLOTS, shards, 3] come a gram's suffix ranks, empty where the shard has no passing suffix with it, and
    what occurs in the shard: NOTHING, its FIRST tokens, or the WHOLE gram. That something does not occur is certain. Of a
    gram that the query's end cuts short only its first tokens are told. If the last look-up was `slow`, the disk is asked
    for all blocks together. Returns the slot of the first gram, the next free slot, and whether this look-up was slow.
    """
    rows, filters, numbers, table = group
    known, grams, row_of, keys, counts, slots = memory
    probe, stride, width = places
    if len(rows) > FEW:
        width = 1
    if row_of[probe] < 0:
        find_rows(
            table,
            query,
            (probe, stride, width) if len(rows) <= FEW else (probe, 1 if stride < GRAM else stride, ROWS),
            keys,
            counts,
            row_of,
        )
    num, num_blocks = 0, 0
    while num < width and probe + num * stride < len(query) and row_of[probe + num * stride] >= 0:
        row = row_of[probe + num * stride]
        slot = slot_of(known, probe + num * stride, free, grams)
        if slot == free:
            free = (free + 1) % SLOTS
        slots[num] = slot
        num += 1
        counted, hint = False, PENDING
        for j in range(num_asked):
            i = asked[j]
            if grams[slot, i, STATE] != UNKNOWN:
                continue
            if not counted:
                pack(query, known[slot], GRAM, 0, keys[0])
                first_rows(table, row, counts)
                if table[4] > 1 or begins_alike(table[0], row, keys[0]):
                    hint = ALIKE_ROW
                counted = True
            first = counts[numbers[i]]
            if table[4] > 1:
                prefixes = opened(rows[i], query)[3]
                last = min(first * table[4], len(prefixes))
                first = table_bound(prefixes[:last], max(first - 1, 0) * table[4], keys[0], False)
            line = rows[i, FINGERPRINTS] + max(first - 1, 0) * (2 * BLOCK)
            if slow:
                will_need(line)
            for _ in range(2 * BLOCK // LINE):
                prefetch(line)
                line += LINE
            grams[slot, i, LO], grams[slot, i, STATE] = first, hint
            num_blocks += 1
    work[SEARCHES] += num_blocks
    if num_blocks == 0:
        return slots[0], free, False
    began = cycles()
    for k in range(num):
        slot = slots[k]
        packed, wanted = False, np.uint16(0)
        for j in range(num_asked):
            i = asked[j]
            hint = grams[slot, i, STATE]
            if hint < PENDING:
                continue
            if not packed:
                pack(query, known[slot], GRAM, 0, keys[0])
                packed, wanted = True, fingerprint(keys[0])
            shard = opened(rows[i], query)
            first, near, again = grams[slot, i, LO], False, False
            if hint == ALIKE_ROW:
                near = begins_alike(shard[3], first, keys[0])
                again = near and shard[3][first, 0] == keys[0, 0]
            lo = max(first - 1, 0) * BLOCK
            hi, least = lo, least_difference(shard[2], lo, min(lo + BLOCK, len(shard[2])), wanted)
            grams[slot, i, STATE] = FIRST if near or least < ALIKE else NOTHING
            if least == 0 or again:
                after = table_bound(shard[3], first, keys[0], True) if again else first
                lo, hi = ranks_of_gram(shard, keys[0], first, least == 0, after)
                if 0 < hi - lo <= NEAR:
                    chosen = chosen_of(filters[i])
                    if not is_unfiltered(shard, chosen):
                        work[SCANNED] += hi - lo
                        if outermost(shard, chosen, lo, hi, False) < 0:
                            hi = lo
                if lo < hi:
                    grams[slot, i, STATE] = WHOLE
            grams[slot, i, LO], grams[slot, i, HI] = lo, hi
    return slots[0], free, cycles() - began > SLOW + SLOW_BLOCK * num_blocks


@jit
def further_back(
    group: Group, query: Tokens, places: tuple[int, int], slot: int, asked: I64, following: I64, slow: bool, memory: Memory,
    free: int, work: I64,
) -> tuple[int, int, bool, int]:  # fmt: skip
    """Look grams up from `probe` back to `at`, STEP by STEP, in the shards that have not excluded `at`, as long as they have
    them.

    `places` is (probe, at), and `slot` that of the gram at `probe`, which these shards have. `following` is moved on where
    one lacks a gram; `asked` is room. Returns the slot of the last gram, the next free slot, and of the look-ups whether
    the last was slow, and how many were.
    """
    probe, at = places
    grams, row_of = memory[1], memory[2]
    num_left, num_slow = to_ask(following, at, asked), 0
    if probe - STEP >= at and row_of[probe - STEP] < 0:
        num_rows = min(ROWS, (probe - at) // STEP)
        find_rows(group[3], query, (probe - STEP, -STEP, num_rows), memory[3], memory[4], row_of)
    while num_left > 0 and probe > at:
        probe = max(at, probe - STEP)
        slot = slot_if_known(memory[0], grams, probe, asked, num_left)
        if slot < 0:
            one = int(ZERO[0]) + 1
            slot, free, slow = look_up(group, query, (probe, one, one), asked, num_left, slow, memory, free, work)
            num_slow += slow
        num_asked, num_left = num_left, 0
        for j in range(num_asked):
            i = asked[j]
            if grams[slot, i, STATE] < WHOLE:
                following[i] = probe + 1
            else:
                asked[num_left] = i
                num_left += 1
    return slot, free, slow, num_slow


@jit_inline
def is_filtered(row: I64, filter_row: I64) -> bool:
    """Whether a filter leaves something of its shard out: by a bitmap, or by a range of positions."""
    return bool(filter_row[3] > 0 or filter_row[0] > 0 or filter_row[1] < row[7])


@jit
def leave_out(
    rows: I64, filters: I64, query: Tokens, probe: int, asked: I64, num_asked: int, ranks: I64, key: U64
) -> None:  # fmt: skip
    """A shard that has the first tokens of the gram at `probe`, but in no passing suffix, has NOTHING of it.

    That is so if all suffixes with them are in the block that was looked at. ranks i64 [shards, 3] are those of `look_up`.
    """
    pack(query, probe, GRAM, 0, key)
    wanted = fingerprint(key)
    for j in range(num_asked):
        i = asked[j]
        if ranks[i, STATE] != FIRST or not is_filtered(rows[i], filters[i]):
            continue
        shard, block = opened(rows[i], query), ranks[i, LO] // BLOCK
        if begins_alike(shard[3], block + 1, key) or (block > 0 and begins_alike(shard[3], block, key)):
            continue
        lo = block * BLOCK
        if not alike_passing(shard, chosen_of(filters[i]), lo, min(lo + BLOCK, len(shard[2])), wanted):
            ranks[i, STATE] = NOTHING
