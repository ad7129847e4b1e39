"""Compiled search for all maximal spans of a query in a group of shards at once.

Rules (all of them hold under any filter, because they speak of what occurs in the passing sequences of any shard):

1. *Reach.* If query[s:e] occurs, so does query[s+1:e]: the ends of the longest matches never fall. A span is maximal
   exactly if it ends beyond the spans that start before it.
2. *Skipping.* Let `reach = max(last end + 1, start + min_length)`. A new span that starts in [start, h] contains
   query[h:reach]. If that occurs in no shard, the next start is h + 1. The last gram before `reach` is looked up first: in
   each shard it costs one block of fingerprints, no token. Where it occurs, grams further back are looked up, STEP by
   STEP, before tokens are compared.
3. *One table for all shards.* Where a gram stands in the prefix tables of all shards is one search of a table that has
   them merged (`SpanGroup`). If a gram is absent, the next ones are known: up to AHEAD of them are looked up together, so that
   their cache misses overlap; one alone after a gram that occurs, as the next ones may never be asked for.
4. *One reach for all shards.* A span is maximal in the group if no shard has a longer one around it. So the shards share
   `start` and `reach`: one that has the start of a long copy spares all others their look-ups inside it. The new span is
   the longest one at the smallest start that a shard reaches back to; its count is the sum over the shards that have that
   very start and length, as all others do not hold it.
5. *Repetition.* If the span just found has the ranks and length of an earlier one, `shift` before, then the query
   repeats itself there; as long as query[i] == query[i - shift], the spans repeat too, shifted, up to and including
   the token after the end (which is what ended them). Those are copied without a search: a run of one token, or any
   period, costs time proportional to the query.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexer.spans.arrays import BLOCK, GRAM
from indexer.spans.hit_kernels import count_passing, next_passing
from indexer.spans.jit import jit, prefetch
from indexer.spans.kernels import (
    I32,
    I64,
    SEARCHES,
    U64,
    ZERO,
    Tokens,
    any_equal,
    chosen_of,
    fingerprint,
    opened,
    pack,
    ranks_of_gram,
    run_edge,
    table_bound,
    table_bounds,
)
from indexer.spans.match_kernels import NEAR, earliest, is_unfiltered, starting_ranks

__all__ = ["COUNT", "HI", "LO", "MergedTable", "maximal_spans"]

MergedTable: TypeAlias = tuple[U64, I32, I64, int, int]
"""(keys u64 [rows, words], owners i32 [rows], before i64 [ceil(rows / every), shards], every, stride), see `SpanGroup`."""
Found: TypeAlias = NDArray[np.int64]

START, LENGTH, RANK, LOW, HIGH = 0, 1, 2, 3, 4
LO, HI, COUNT = 0, 1, 2
FINGERPRINTS = 3
"""Column of `SpanArrays.row`."""
LINE = 64
"""Bytes of a cache line."""
AHEAD = 4
STEP = 4
RECENT = 256
"""Slots for the last spans by ranks and length, to notice repetition."""


@jit
def first_rows(table: MergedTable, row: int, key: U64, rows: I64) -> bool:
    """How many of the merged table's keys before `row` each shard owns, into rows [shards]; whether `row` is the key."""
    keys, owners, before, every = table[0], table[1], table[2], table[3]
    same = row < len(keys)
    if same:
        for word in range(len(key)):
            same &= keys[row, word] == key[word]
    if len(owners) == 0:
        rows[0] = row
        return same
    sample = row // every
    for shard in range(len(rows)):
        rows[shard] = before[sample, shard]
    for i in range(sample * every, row):
        rows[np.uint64(owners[np.uint64(i)])] += 1
    return same


@jit
def look_up(
    rows: I64, filters: I64, numbers: I64, table: MergedTable, query: Tokens, probe: int, stride: int, width: int,
    ahead: I64, ranks: Found, work: I64,
) -> None:  # fmt: skip
    """Look `width` grams at probe, probe + stride … up in every shard: their starts into ahead i64 [AHEAD, 2], their suffix
    ranks into ranks i64 [AHEAD, shards, 2], and whether any shard has some into the second column of `ahead`.

    A range of ranks is empty where the shard has no passing suffix with that gram, and this is certain.
    """
    keys, num = np.empty((AHEAD, table[0].shape[1]), np.uint64), 0
    firsts, counts = np.empty(AHEAD, np.int64), np.empty(max(1, table[2].shape[1]), np.int64)
    repeated = np.zeros(AHEAD, np.bool_)
    while num < width and probe + num * stride + GRAM <= len(query):
        pack(query, probe + num * stride, GRAM, 0, keys[num])
        num += 1
    table_bounds(table[0], keys, num, firsts)
    for k in range(AHEAD):
        ahead[k, 0], ahead[k, 1] = probe + k * stride if k < num else -1, 0
    for k in range(num):
        repeated[k] = first_rows(table, firsts[k], keys[k], counts)
        for i in range(len(rows)):
            first = counts[numbers[i]]
            if table[4] > 1:
                prefixes = opened(rows[i], query)[3]
                last = min(first * table[4], len(prefixes))
                first = table_bound(prefixes[:last], max(first - 1, 0) * table[4], keys[k], False)
                repeated[k] |= first < len(prefixes) and prefixes[first, 0] == keys[k, 0]
            ranks[k, i, 0] = first
            line = rows[i, FINGERPRINTS] + max(first - 1, 0) * (2 * BLOCK)
            for _ in range(2 * BLOCK // LINE):
                prefetch(line)
                line += LINE
    work[SEARCHES] += num * len(rows)
    for k in range(num):
        key, wanted = keys[k], fingerprint(keys[k])
        for i in range(len(rows)):
            shard = opened(rows[i], query)
            first = ranks[k, i, 0]
            again = repeated[k] and first < len(shard[3]) and shard[3][first, 0] == key[0]
            lo = max(first - 1, 0) * BLOCK
            present = any_equal(shard[2], lo, min(lo + BLOCK, len(shard[2])), wanted)
            ranks[k, i, 0] = ranks[k, i, 1] = 0
            if present or again:
                after = table_bound(shard[3], first, key, True) if again else first
                lo, hi = ranks_of_gram(shard, key, first, present, after)
                if 0 < hi - lo <= NEAR:
                    chosen = chosen_of(filters[i])
                    if not is_unfiltered(shard, chosen) and next_passing(shard, chosen, lo, hi, work) < 0:
                        hi = lo
                ranks[k, i, 0], ranks[k, i, 1] = lo, hi
                ahead[k, 1] |= lo < hi


@jit
def reaching_back(
    row: I64, filter_row: I64, query: Tokens, places: tuple[int, int, int, int], lo: int, hi: int, gram: int, barren: I64,
    found: I64, work: I64,
) -> int:  # fmt: skip
    """The passing match of one shard with the smallest start in [start, at] that gets to `reach`, into found i64 [5].

    `places` is (start, at, reach, probe); suffixes with the gram at `probe` have the ranks [lo, hi) there. Returns the
    place h from which on no passing match gets to `reach`, or -1 where one is found.
    """
    start, at, reach, probe = places
    shard = opened(row, query)
    while lo < hi and probe > at:
        probe = max(at, probe - STEP)
        lo, hi = starting_ranks(shard, query, probe, gram, work)
    if lo >= hi:
        return probe
    match = earliest(shard, chosen_of(filter_row), query, start, at, reach, lo, hi, barren, work)
    if match[1] == 0:
        return at
    found[START], found[LENGTH], found[RANK], found[LOW], found[HIGH] = match
    return -1


@jit
def first_reaching(
    rows: I64, filters: I64, query: Tokens, places: tuple[int, int, int, int], gram: int, grams: I64, barren: I64,
    found: I64, work: I64,
) -> tuple[int, int]:  # fmt: skip
    """The shard whose match reaches back furthest to `reach`, of those the longest; -1, and h as above, if none has one.

    `places` is (start, at, reach, probe); grams i64 [shards, 2] are the ranks of the gram at `probe`, if it has GRAM
    tokens. The matches are in found i64 [shards, 5], of length 0 where a shard has none or was not asked further back.
    """
    start, at, reach, probe = places
    best, longest, lead, nearest = at + 1, 0, -1, reach
    for i in range(len(rows)):
        lo, hi = grams[i, 0], grams[i, 1]
        if gram < GRAM:
            lo, hi = starting_ranks(opened(rows[i], query), query, probe, gram, work)
        found[i, LENGTH] = 0
        if lo >= hi:
            nearest = min(nearest, probe)
            continue
        asked = (start, min(at, best), reach, probe)
        absent = reaching_back(rows[i], filters[i], query, asked, lo, hi, gram, barren[i], found[i], work)
        if absent >= 0:
            nearest = min(nearest, absent)
        elif found[i, START] < best or found[i, LENGTH] > longest:
            best, longest, lead = found[i, START], found[i, LENGTH], i
    return lead, nearest


@jit
def ranks_of_span(
    row: I64, filter_row: I64, query: Tokens, found: I64, num: int, ranks: I64, work: I64
) -> None:  # fmt: skip
    """Suffix ranks and count of a shard's match, into ranks i64 [3]; `num` is its count if that is known, else -1."""
    shard = opened(row, query)
    start, length, rank = found[START], found[LENGTH], found[RANK]
    lo = run_edge(shard[0], shard[1], found[LOW] - 1, rank, query, start, length, work)
    hi = run_edge(shard[0], shard[1], found[HIGH], rank, query, start, length, work) + 1
    ranks[LO], ranks[HI] = lo, hi
    ranks[COUNT] = num if num >= 0 else count_passing(shard, chosen_of(filter_row), lo, hi)


@jit
def doubled(spans: I64, ranks: Found) -> tuple[I64, Found]:
    """Room for twice as many spans."""
    more_spans = np.zeros((2 * len(spans), 2), np.int64)
    more_ranks = np.zeros((2 * len(ranks), ranks.shape[1], 3), np.int64)
    more_spans[: len(spans)] = spans
    more_ranks[: len(ranks)] = ranks
    return more_spans, more_ranks


@jit
def same_span(spans: I64, ranks: Found, model: int, lead: int, lo: int, length: int) -> bool:
    """Whether an earlier span has those ranks in that shard, and that length: then its tokens are the same."""
    return bool(
        model >= 0
        and ranks[model, lead, LO] == lo
        and ranks[model, lead, HI] > lo
        and spans[model, 1] - spans[model, 0] == length
    )


@jit
def maximal_spans(
    rows: I64, filters: I64, numbers: I64, table: MergedTable, query: Tokens, min_length: int, separator: int, work: I64
) -> tuple[I64, Found]:
    """(start and end i64 [k, 2], suffix ranks and count in each shard i64 [k, shards, 3]) of every maximal span.

    rows i64 [shards, ROW] and filters i64 [shards, 7] open the shards and their filters, numbers i64 [shards] are their
    columns in the merged table. Separators cut the query in pieces.
    """
    num_shards, zero = len(rows), int(ZERO[0])
    spans, ranks = np.zeros((64, 2), np.int64), np.zeros((64, num_shards, 3), np.int64)
    barren, found = np.zeros((num_shards, 3), np.int64), np.zeros((num_shards, 5), np.int64)
    ahead, grams = np.full((AHEAD, 2), -1, np.int64), np.zeros((AHEAD, num_shards, 2), np.int64)
    recent = np.full(RECENT, -1, np.int64)
    gram = min(min_length, GRAM)
    stride = min_length - gram + 1
    num_spans, begin, width = 0, zero, 1
    while begin < len(query):
        stop = begin
        while stop < len(query) and query[stop] != separator:
            stop += 1
        piece = query[:stop]
        start, last_end, begin = begin, begin, stop + 1
        model, shift, verified = -1, 0, 0
        recent[:] = -1
        while True:
            if num_spans + 1 >= len(spans):
                spans, ranks = doubled(spans, ranks)
            if model >= 0:
                end = spans[model + 1, 1] + shift
                while verified <= end and verified < stop and query[verified] == query[verified - shift]:
                    verified += 1
                if verified > end:
                    model += 1
                    start, last_end = spans[model, 0] + shift + 1, end
                    spans[num_spans, 0], spans[num_spans, 1] = start - 1, end
                    ranks[num_spans] = ranks[model]
                    num_spans += 1
                    continue
                model = -1
            reach = max(last_end + 1, start + min_length)
            if reach > stop:
                break
            at, probe, slot = reach - min_length, reach - gram, 0
            if gram == GRAM:
                while slot < AHEAD and ahead[slot, 0] != probe:
                    slot += 1
                if slot == AHEAD:
                    look_up(rows, filters, numbers, table, piece, probe, stride, width, ahead, grams, work)
                    slot, width = 0, min(2 * width, AHEAD)
                if ahead[slot, 1] == 0:
                    start = probe + 1
                    continue
                width = 1
            places = (start, at, reach, probe)
            lead, nearest = first_reaching(rows, filters, piece, places, gram, grams[slot], barren, found, work)
            if lead < 0:
                start = nearest + 1
                continue
            best, longest = found[lead, START], found[lead, LENGTH]
            ranks[num_spans] = 0
            spans[num_spans, 0], spans[num_spans, 1] = best, best + longest
            start, last_end = best + 1, best + longest
            ranks_of_span(rows[lead], filters[lead], piece, found[lead], zero, ranks[num_spans, lead], work)
            place = (ranks[num_spans, lead, LO] * 31 + longest + lead) % RECENT
            model = recent[place]
            recent[place] = num_spans
            if same_span(spans, ranks, model, lead, ranks[num_spans, lead, LO], longest):
                shift, verified = best - spans[model, 0], last_end
                ranks[num_spans] = ranks[model]
            else:
                model = -1
                for i in range(num_shards):
                    if found[i, START] == best and found[i, LENGTH] == longest:
                        ranks_of_span(rows[i], filters[i], piece, found[i], -1, ranks[num_spans, i], work)
            num_spans += 1
    return spans[:num_spans], ranks[:num_spans]
