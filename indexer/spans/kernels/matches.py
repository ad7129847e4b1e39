"""Compiled search in one shard: the longest passing match at a start, and how far back a match reaches.

Rules (all of them hold under any filter, because they speak of what occurs in the passing sequences only):

1. *Going back.* What occurs at s occurs at s + 1: the smallest start s such that query[s:reach] occurs is found by
   following one occurrence backward in its text, and from where it differs by galloping backward and bisecting.
   Going forward, start by start, would compare the whole overlap at each of them.
2. *Nearest passing suffix.* What a suffix shares with the query falls monotonically away from the insertion point. The
   longest passing match is therefore shared by the nearest passing suffix on one side or the other. Walks outward skip
   blocks without a passing position, and end where less is shared than is already found.
3. *Bounded comparing.* A look-up compares at most a small multiple of what the filter then admits, so that a long copy
   in sequences that do not pass costs nothing.
"""

import numpy as np

from indexer.jit import jit, jit_inline
from indexer.spans.arrays import GRAM, RANGE
from indexer.spans.kernels.hits import next_passing, previous_passing
from indexer.spans.kernels.packing import (
    I64,
    SCANNED,
    ZERO,
    Chosen,
    Shard,
    Tokens,
    common_prefix,
    common_suffix,
    gram_ranks,
    insertion,
    run_edge,
    short_ranks,
    suffix_at,
)
from indexer.spans.kernels.table import Finder, ranks_in_shard

NEAR = 32
"""Ranks beside the insertion point that are looked at before the range of sharing suffixes is bounded."""


@jit_inline
def is_unfiltered(shard: Shard, chosen: Chosen) -> bool:
    """Whether every sequence passes."""
    return len(chosen[2]) == 0 and chosen[0] <= 0 and chosen[1] >= len(shard[0])


@jit
def nearest_above(
    shard: Shard, chosen: Chosen, query: Tokens, start: int, need: int, rank: int, hi: int, limit: int, work: I64
) -> tuple[int, int]:
    """(length, rank) of the first passing suffix in [rank, hi) if it shares `need` tokens, as the one at `rank` does."""
    tokens, suffix_array = shard[0], shard[1]
    near = min(hi, rank + NEAR)
    found = next_passing(shard, chosen, rank, near, work)
    if found < 0 and near < hi:
        edge = run_edge(tokens, suffix_array, hi, rank, query, start, need, work) + 1
        found = next_passing(shard, chosen, near, edge, work)
    if found < 0:
        return 0, rank
    length = common_prefix(tokens, int(suffix_array[found]), query, start, int(ZERO[0]), limit, work)
    return (length, found) if length >= need else (0, rank)


@jit
def nearest_below(
    shard: Shard, chosen: Chosen, query: Tokens, start: int, need: int, lo: int, rank: int, limit: int, work: I64
) -> tuple[int, int]:
    """(length, rank) of the last passing suffix in [lo, rank] if it shares `need` tokens, as the one at `rank` does."""
    tokens, suffix_array = shard[0], shard[1]
    near = max(lo, rank - NEAR)
    found = previous_passing(shard, chosen, near, rank + 1, work)
    if found < 0 and near > lo:
        edge = run_edge(tokens, suffix_array, lo - 1, rank, query, start, need, work)
        found = previous_passing(shard, chosen, edge, near, work)
    if found < 0:
        return 0, rank
    length = common_prefix(tokens, int(suffix_array[found]), query, start, int(ZERO[0]), limit, work)
    return (length, found) if length >= need else (0, rank)


@jit
def nearest_passing(
    shard: Shard, chosen: Chosen, query: Tokens, start: int, need: int, place: tuple[int, int, int, int, int], limit: int,
    work: I64,
) -> tuple[int, int]:  # fmt: skip
    """(length, rank) of the passing suffix that shares most, if that is `need` or more; else length 0.

    `place` is (lo, hi, insertion rank, shared below it, shared at it). The side that shares more goes first; the other
    one only as far as it shares more than what was found.
    """
    lo, hi, rank, below, above = place
    length, inside = 0, rank
    if above >= need and above >= below:
        length, inside = nearest_above(shard, chosen, query, start, need, rank, hi, limit, work)
    if below >= need and below > length:
        least = max(need, length + 1)
        shared, found = nearest_below(shard, chosen, query, start, least, lo, rank - 1, limit, work)
        if shared > length:
            length, inside = shared, found
    if need <= above < below and above > length:
        least = max(need, length + 1)
        shared, found = nearest_above(shard, chosen, query, start, least, rank, hi, limit, work)
        if shared > length:
            length, inside = shared, found
    return length, inside


@jit
def piece_end(query: Tokens, begin: int, separator: int) -> int:
    """The first separator in query[begin:], or the end."""
    end = begin
    while end < len(query) and query[end] != separator:
        end += 1
    return end


@jit_inline
def longest(
    shard: Shard, chosen: Chosen, query: Tokens, start: int, need: int, lo: int, hi: int, barren: I64, work: I64
) -> tuple[int, int, int, int]:
    """(length, rank, lo, hi) of the longest passing match at `start` if it has at least `need` >= 1 tokens, else zeros.

    The suffixes that share `need` tokens are in the given [lo, hi). `rank` is one that shares the match; all others that
    share it are in the returned [lo, hi). `barren` i64 [3] keeps the last long range of suffixes in vain: no suffix in
    ranks [0]:[1] passes, and those are all that share their first [2] tokens.
    """
    tokens, suffix_array = shard[0], shard[1]
    room = len(query) - start
    if room < need or chosen[0] >= chosen[1]:
        return 0, 0, 0, 0
    everything = is_unfiltered(shard, chosen)
    limit = min(room, max(4 * GRAM, 2 * need))
    while lo < hi:
        rank, below, above = insertion(tokens, suffix_array, lo, hi, query, start, limit, work)
        length, inside = max(below, above), rank if above >= below else rank - 1
        if length < need:
            break
        if not everything:
            if barren[0] <= inside < barren[1] and need >= barren[2]:
                break
            sharing, scanned = inside, work[SCANNED]
            place = (lo, hi, rank, below, above)
            length, inside = nearest_passing(shard, chosen, query, start, need, place, limit, work)
            if length == 0:
                if work[SCANNED] - scanned > RANGE:
                    barren[0] = run_edge(tokens, suffix_array, lo - 1, sharing, query, start, need, work)
                    barren[1] = run_edge(tokens, suffix_array, hi, sharing, query, start, need, work) + 1
                    barren[2] = need
                break
        if length < limit or limit == room:
            return length, inside, rank if below < length else lo, rank if above < length else hi
        lo, need = rank, limit
        limit = min(room, 4 * limit)
    return 0, 0, 0, 0


@jit
def starting_ranks(shard: Shard, query: Tokens, start: int, length: int, work: I64) -> tuple[int, int]:
    """Ranks that hold every suffix beginning with query[start:start+length], or with its first gram if that is shorter."""
    if length < GRAM:
        return short_ranks(shard, query, start, length, work)
    return gram_ranks(shard, query, start, work)


@jit
def find_ranks(shard: Shard, query: Tokens, work: I64) -> tuple[int, int]:
    """Suffix ranks [lo, hi) of the whole query, which is not empty; (0, 0) if it does not occur."""
    tokens, suffix_array = shard[0], shard[1]
    zero = int(ZERO[0])
    if piece_end(query, zero, tokens[-1]) < len(query):
        return 0, 0
    lo, hi = starting_ranks(shard, query, zero, len(query), work)
    rank, _, above = insertion(tokens, suffix_array, lo, hi, query, zero, len(query), work)
    if above < len(query):
        return 0, 0
    return rank, run_edge(tokens, suffix_array, hi, rank, query, zero, len(query), work) + 1


@jit
def longest_length(shard: Shard, chosen: Chosen, query: Tokens, work: I64) -> int:
    """Length of the longest passing match at the start of the query, which may be 0."""
    zero = int(ZERO[0])
    end = piece_end(query, zero, shard[0][-1])
    if end == 0:
        return 0
    lo, hi = short_ranks(shard, query, zero, zero + 1, work)
    barren = np.zeros(3, np.int64)
    return longest(shard, chosen, query[:end], zero, zero + 1, lo, hi, barren, work)[0]


@jit_inline
def earliest(
    shard: Shard, chosen: Chosen, number: int, finder: Finder, query: Tokens, first: int, at: int, reach: int, lo: int,
    hi: int, barren: I64, work: I64,
) -> tuple[int, int, int, int, int]:  # fmt: skip
    """(start, length, rank, lo, hi) of the smallest start in [first, at] from which a passing match gets to `reach`.

    The suffixes that share query[at:reach] are in the given [lo, hi). Length is 0 if not even that passes.
    """
    length, rank, lo, hi = longest(shard, chosen, query, at, reach - at, lo, hi, barren, work)
    start, outside, jump, galloping, back = at, first - 1, 1, True, 0
    if length > 0 and at > first:
        back = common_suffix(shard[0], suffix_at(shard[0], shard[1], rank), query, at, at - first, work)
    while length > 0 and start - outside > 1:
        probe = start - (back if back > 0 else jump) if galloping else (start + outside) >> 1
        if probe <= outside:
            galloping = False
            continue
        low, high = ranks_in_shard(shard, number, finder, query, probe, reach - probe, work)
        found = longest(shard, chosen, query, probe, reach - probe, low, high, barren, work)
        if found[0] > 0:
            start, (length, rank, lo, hi) = probe, found
            jump *= 1 if back > 0 else 2
        else:
            outside, galloping = probe, False
        back = 0
    return start, length, rank, lo, hi
