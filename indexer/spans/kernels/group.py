"""Compiled search for all maximal spans of a query in a group of shards at once.

Rules (all of them hold under any filter, because they speak of what occurs in the passing sequences of any shard):

1. *Reach.* If query[s:e] occurs, so does query[s+1:e]: the ends of the longest matches never fall. A span is maximal
   exactly if it ends beyond the spans that start before it.
2. *Skipping.* Let `reach = max(last end + 1, start + min_length)`. A new span that starts in [start, h] contains
   query[h:reach]. If that occurs in no shard, the next start is h + 1. So the last gram before `reach` is looked up first; in
   each shard it costs one block of fingerprints, no token. Below a min_length of TWICE the last SHORT tokens come before it:
   they occur more often, but where they do not, more starts are passed. Where they do, the SHORT tokens one further back are
   next: if those are absent, two starts are passed at once. Where a gram occurs, grams further back are looked up, STEP by
   STEP, in all shards that have it together, before tokens are compared. `following` keeps for each shard the first start it
   has not excluded: it is asked again from there on only. A shard that has short grams alone is asked for the grams that
   the others have passed at once, so that all shards stay together. Under a filter, first tokens that no passing suffix has
   count as absent, where one block shows it (`leave_out`).
3. *One table for all shards.* Where a gram stands in the prefix tables of all shards is one search of a table that has
   them merged (`SpanGroup`); several searches advance together. If a gram is absent, the next ones are known: up to AHEAD of
   them are looked up together in FEW shards, so that their cache misses overlap; one alone after a gram that occurs, as the
   next ones may never be asked for, and where a look-up has waited for the disk: there a page costs more than it overlaps.
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

from indexer.jit import atomic_add, cycles, jit, jit_inline, jit_short, prefetch, uncounted
from indexer.spans.arrays import GRAM, SHORT
from indexer.spans.kernels.grams import (
    AHEAD,
    FIRST,
    HI,
    LO,
    SLOTS,
    STATE,
    WHOLE,
    Found,
    Group,
    Memory,
    further_back,
    is_filtered,
    lacks,
    leave_out,
    look_up,
    slot_if_known,
    to_ask,
)
from indexer.spans.kernels.hits import count_passing
from indexer.spans.kernels.matches import NEAR, earliest, piece_end
from indexer.spans.kernels.packing import (
    I64,
    SEARCHES,
    ZERO,
    Shard,
    Tokens,
    chosen_of,
    common_prefix,
    opened,
    run_edge,
    suffix_at,
)
from indexer.spans.kernels.table import LINE, ROWS, Finder, ranks_in_shard

__all__ = ["COUNT", "HI", "LO", "NEVER", "TWICE", "Group", "Shared", "gathered", "maximal_spans"]

Shared: TypeAlias = tuple[I64, I64, I64, I64, Found]
"""What the threads of a search share: edges of its stretches i64 [stretches + 1]; state i64 [2], how many are claimed and
done; and the spans found, those of the stretch that begins at start s from row s on: how many at s, counts i64 [starts + 1];
spans i64 [starts, 2]; ranks i64 [starts, shards, 3]."""

START, LENGTH, RANK, LOW, HIGH = 0, 1, 2, 3, 4
COUNT = 2
"""Column of what a shard has of a span, beside LO and HI."""
SUFFIXES = 2
"""Column of `SpanArrays.row`."""
TWICE = 2 * GRAM
NEVER = 1 << 62
WAKING = 100_000
"""Cycles that are waited for other threads; after that the system is asked to."""
RECENT = 256
"""Slots for the last spans by ranks and length, to notice repetition."""


@jit_inline
def least(numbers: I64) -> int:
    """The smallest of some numbers."""
    smallest = numbers[0]
    for number in numbers:
        smallest = min(smallest, number)
    return int(smallest)


@jit_inline
def reaching_back(
    row: I64, filter_row: I64, number: int, finder: Finder, query: Tokens, places: tuple[int, int, int, int],
    ranks: tuple[int, int], gram: int, barren: I64, found: I64, work: I64,
) -> bool:  # fmt: skip
    """The passing match of one shard with the smallest start in [start, at] that gets to `reach`, into found i64 [5].

    `places` is (start, at, reach, probe); suffixes with the gram at `probe` have the `ranks` (lo, hi) there. Returns whether
    there is one.
    """
    start, at, reach, probe = places
    shard, (lo, hi) = opened(row, query), ranks
    if lo < hi and probe > at:
        lo, hi = ranks_in_shard(shard, number, finder, query, at, gram, work)
    if lo >= hi:
        return False
    match = earliest(shard, chosen_of(filter_row), number, finder, query, start, at, reach, lo, hi, barren, work)
    found[START], found[LENGTH], found[RANK], found[LOW], found[HIGH] = match
    return bool(match[1] > 0)


@jit_inline
def near_middle(ranks: I64) -> tuple[int, int]:
    """Ranks [lo, hi), or one in their middle where they are more than NEAR."""
    lo, hi = ranks[LO], ranks[HI]
    if hi - lo <= NEAR:
        return lo, hi
    middle = (lo + hi) >> 1
    return middle, middle + 1


@jit
def will_match(rows: I64, query: Tokens, at: int, grams: I64, following: I64) -> None:
    """Ask for the memory that `earliest` reads first in each shard that has the gram: its suffixes, then their text.

    Where they are many, that is one in the middle. So the cache misses of all shards overlap.
    """
    for i in range(len(rows)):
        lo, hi = near_middle(grams[i])
        if lo < hi and following[i] <= at:
            for rank in range(lo, hi, LINE // 4):
                prefetch(rows[i, SUFFIXES] + 4 * rank)
            prefetch(rows[i, SUFFIXES] + 4 * (hi - 1))
    for i in range(len(rows)):
        lo, hi = near_middle(grams[i])
        if lo < hi and following[i] <= at:
            suffix_array = opened(rows[i], query)[1]
            for rank in range(lo, hi):
                prefetch(rows[i, 0] + query.itemsize * np.int64(suffix_array[rank]))


@jit_inline
def first_reaching(
    group: Group, finder: Finder, query: Tokens, places: tuple[int, int, int, int], gram: int, grams: I64, following: I64,
    barren: I64, found: I64, work: I64,
) -> int:  # fmt: skip
    """The shard whose match reaches back furthest to `reach`, of those the longest; -1 if none has one.

    `places` is (start, at, reach, probe); grams i64 [shards, 3] are the ranks of the gram at `probe`, if it has GRAM
    tokens. The matches are in found i64 [shards, 5], of length 0 where a shard has none or was not asked further back.
    following i64 [shards] is moved on where a shard has none.
    """
    rows, filters, numbers, _ = group
    start, at, reach, probe = places
    best, longest, lead = at + 1, 0, -1
    if gram == GRAM and len(rows) > 1:
        will_match(rows, query, at, grams, following)
    for i in range(len(rows)):
        found[i, LENGTH] = 0
        back_to = max(start, following[i])
        if back_to > min(at, best):
            continue
        if gram < GRAM:
            lo, hi = ranks_in_shard(opened(rows[i], query), numbers[i], finder, query, probe, gram, work)
        else:
            lo, hi = grams[i, LO], grams[i, HI]
        last = min(at, best)
        asked = (back_to, last, reach, probe)
        if not reaching_back(
            rows[i], filters[i], numbers[i], finder, query, asked, (lo, hi), gram, barren[i], found[i], work
        ):
            following[i] = last + 1
        elif found[i, START] < best or found[i, LENGTH] > longest:
            best, longest, lead = found[i, START], found[i, LENGTH], i
    return lead


@jit
def edge_of_span(shard: Shard, query: Tokens, start: int, length: int, edge: int, rank: int, work: I64) -> int:
    """The outermost rank from `rank` up or down to `edge` that shares the span, as `rank` does; none beyond `edge` does.

    A span of one gram mostly goes up to the edge, as only suffixes with its fingerprint were left.
    """
    tokens, suffix_array = shard[0], shard[1]
    if rank == edge:
        return rank
    if length <= GRAM:
        position = suffix_at(tokens, suffix_array, edge)
        if common_prefix(tokens, position, query, start, int(ZERO[0]), length, work) == length:
            return edge
    return run_edge(tokens, suffix_array, edge + (1 if edge > rank else -1), rank, query, start, length, work)


@jit_inline
def ranks_of_span(
    row: I64, filter_row: I64, query: Tokens, found: I64, num: int, ranks: I64, work: I64
) -> None:  # fmt: skip
    """Suffix ranks and count of a shard's match, into ranks i64 [3]; `num` is its count if that is known, else -1."""
    shard = opened(row, query)
    start, length, rank = found[START], found[LENGTH], found[RANK]
    lo = edge_of_span(shard, query, start, length, found[LOW], rank, work)
    hi = edge_of_span(shard, query, start, length, found[HIGH] - 1, rank, work) + 1
    ranks[LO], ranks[HI] = lo, hi
    ranks[COUNT] = num if num >= 0 else count_passing(shard, chosen_of(filter_row), lo, hi)


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
def spans_from(
    group: Group, query: Tokens, first_start: int, end_start: int, min_length: int, separator: int, patience: int,
    budget: tuple[int, int], memory: Memory, following: I64, asked: I64, barren: I64, found: I64, recent: I64, spans: I64,
    ranks: Found, work: I64,
) -> tuple[int, int]:  # fmt: skip
    """Write every span that begins in query[first_start:end_start] and is maximal there into spans i64 [starts, 2] and ranks
    i64 [starts, shards, 3]; returns how many, and the start up to which that holds, as `maximal_spans` does.
    """
    rows, filters, _, table = group
    known, grams, row_of, keys, counts, _ = memory
    num_shards, zero = len(rows), int(ZERO[0])
    gram, finder = min(min_length, GRAM), (table, row_of, keys, counts)
    num_spans, begin, width, free, slow, num_slow = 0, first_start, zero + 1, zero, zero > 0, 0
    filtered, stopped, stop_after = False, False, budget[0]
    for i in range(num_shards):
        filtered |= is_filtered(rows[i], filters[i])
    while begin < end_start:
        stop = piece_end(query, begin, separator)
        piece = query[:stop]
        start, last_end, begin = begin, begin, stop + 1
        model, shift, verified = -1, 0, 0
        recent[:], following[:] = -1, start
        while start < end_start:
            if model >= 0:
                end = spans[model + 1, 1] + shift
                while verified <= end and verified < stop and query[verified] == query[verified - shift]:
                    verified += 1
                if verified > end and spans[model + 1, 0] + shift < end_start:
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
            if work[SEARCHES] >= stop_after:
                stop_after = NEVER
                stopped = work[SEARCHES] * (end_start - start) >= budget[1] * (start - first_start)
            if num_slow >= patience or stopped:
                return num_spans, start
            at, probe, slot = reach - min_length, reach - gram, 0
            if gram == GRAM:
                short, between, num_left = zero, zero, to_ask(following, at, asked)
                for size in (SHORT, GRAM - 1, GRAM):
                    if num_left == 0 or (size < GRAM and min_length >= TWICE):
                        continue
                    place = reach - size
                    slot = slot_if_known(known, grams, place, asked, num_left)
                    if slot < 0:
                        places = (place, min_length - size + 1, width)
                        slot, free, slow = look_up(group, piece, places, asked, num_left, slow, memory, free, work)
                        num_slow += slow
                        width = min(2 * width, AHEAD) if num_slow == 0 else 1
                    if size < GRAM and filtered:
                        leave_out(rows, filters, piece, place, asked, num_left, grams[slot], keys[0])
                    short, between = (slot, between) if size == SHORT else (short, slot if size < GRAM else between)
                    num_asked, num_left = num_left, 0
                    for j in range(num_asked):
                        i = asked[j]
                        if grams[slot, i, STATE] >= (FIRST if size < GRAM else WHOLE):
                            asked[num_left] = i
                            num_left += 1
                        else:
                            following[i] = place + 1
                            if size > SHORT:
                                following[i] += known[between] == following[i] and lacks(grams, between, i)
                                following[i] += known[short] == following[i] and lacks(grams, short, i)
                    width = width if num_left == 0 else 1
                start = max(start, least(following))
                if probe > at >= start:
                    slot, free, slow, num_waits = further_back(
                        group, piece, (probe, at), slot, asked, following, slow, memory, free, work
                    )
                    num_slow += num_waits
                    start = max(start, least(following))
                if start > at:
                    continue
                probe = at
            around = (start, at, reach, probe)
            lead = first_reaching(group, finder, piece, around, gram, grams[slot], following, barren, found, work)
            if lead < 0:
                start = max(start, least(following))
                continue
            best, longest = found[lead, START], found[lead, LENGTH]
            if best >= end_start:
                break
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
                        ranks_of_span(rows[i], filters[i], piece, found[i], zero - 1, ranks[num_spans, i], work)
            num_spans += 1
    return num_spans, end_start


@jit
def maximal_spans(
    group: Group,
    query: Tokens,
    shared: Shared,
    min_length: int,
    separator: int,
    patience: int,
    budget: tuple[int, int],
    work: I64,
) -> tuple[int, int]:
    """Search stretches of starts that no other thread has claimed, as long as there are some, for every span that begins in
    the stretch and is maximal there. Separators cut the query in pieces.

    It stops in a stretch if `patience` look-ups were slow, as those are that wait for the disk; or after budget[0] look-ups,
    each in one shard, if at that pace budget[1] more are ahead. Then the rest of the stretch is returned, (start, end), else
    two equal numbers.
    """
    rows, filters, numbers, table = group
    edges, state, counts, spans, ranks = shared
    num_shards, words = len(rows), table[0].shape[1]
    known, grams = np.full(SLOTS, -1, np.int64), np.zeros((SLOTS, num_shards, 3), np.int64)
    row_of, following = np.full(len(query), -1, np.int64), np.zeros(num_shards, np.int64)
    barren, found = np.zeros((num_shards, 3), np.int64), np.zeros((num_shards, 5), np.int64)
    recent, asked = np.full(RECENT, -1, np.int64), np.zeros(num_shards, np.int64)
    keys, rows_before = np.empty((ROWS, words), np.uint64), np.empty(max(ROWS, table[2].shape[1]), np.int64)
    slots = np.empty(AHEAD, np.int64)
    merged = (uncounted(table[0]), uncounted(table[1]), uncounted(table[2]), table[3], table[4])
    done, end = 0, 0
    while done == end:
        stretch = atomic_add(state.ctypes.data, 1)
        if stretch + 1 >= len(edges):
            break
        first, end = edges[stretch], edges[stretch + 1]
        counts[first], done = spans_from(
            (uncounted(rows), uncounted(filters), uncounted(numbers), merged), uncounted(query), first, end, min_length,
            separator, patience, budget,
            (uncounted(known), uncounted(grams), uncounted(row_of), uncounted(keys), uncounted(rows_before), uncounted(slots)),
            uncounted(following), uncounted(asked), uncounted(barren), uncounted(found), uncounted(recent),
            uncounted(spans)[first:end], uncounted(ranks)[first:end], uncounted(work),
        )  # fmt: skip
        atomic_add(state.ctypes.data + 8, 1)
    # Named once more, so that they live until here.
    work[SEARCHES] += 0 * (
        known[0] + grams[0, 0, 0] + row_of[0] + following[0] + barren[0, 0] + found[0, 0] + recent[0] + asked[0]
        + rows_before[0] + slots[0] + len(keys)
    )  # fmt: skip
    return done, end


@jit_short
def gathered(shared: Shared) -> tuple[bool, I64, Found]:
    """(whether all stretches are done, spans, ranks): the spans of all stretches of a search, one after the other, without
    those that lie in one of a stretch before.

    Waits for other threads, as long as it takes to wake one.
    """
    edges, state, counts, spans, ranks = shared
    began, num = cycles(), 0
    while atomic_add(state.ctypes.data + 8, 0) + 1 < len(edges):
        if cycles() - began > WAKING:
            return False, spans[:0], ranks[:0]
    for first in range(len(counts)):
        num += counts[first]
    all_spans, all_ranks = np.empty((num, 2), np.int64), np.empty((num, ranks.shape[1], 3), np.int64)
    num, furthest = 0, 0
    for first in range(len(counts)):
        for row in range(first, first + counts[first]):
            if spans[row, 1] > furthest:
                furthest = spans[row, 1]
                all_spans[num] = spans[row]
                all_ranks[num] = ranks[row]
                num += 1
    return True, all_spans[:num], all_ranks[:num]
