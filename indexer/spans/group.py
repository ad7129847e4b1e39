"""All maximal spans of a query in the shards of a run, searched together.

Rules:

1. Shards are cut between sequences, so that whatever occurs in the run occurs in one of its shards as a whole.
2. A group has its shards' prefix tables merged into one sorted table of at most MAX_KEYS rows (every `stride`-th row of
   each where they are more): one search in it says where a gram stands in every shard.
3. Up to TOGETHER shards are searched by one kernel, which shares what it learns among them. More are searched side by
   side, in threads if there is an executor, and their spans merged: one is maximal in the run exactly if a part lists it
   and no part lists a longer one around it. (A longer one that occurs anywhere lies in a listed one.) Its count is the sum
   over the parts that list it. (A part where it occurs unlisted lists a longer one around it.)
4. A search that finds itself waiting for the disk stops, and READERS threads go on with the rest of the query, a stretch
   of starts each: what is maximal in the query is maximal in its stretch, and what is so in the stretch alone lies in a
   span that begins earlier. So their reads overlap. One that has much to do, in many shards or of a long query, goes on in
   as many threads as there are cores.
5. Query tokens that no training token can equal cut the query in pieces.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from indexer.spans import group_kernels
from indexer.spans.arrays import SpanArrays, SpanIndexError
from indexer.spans.group_kernels import NEVER, TWICE
from indexer.spans.kernels import SEARCHES
from indexer.spans.prepare import filter_row, prepare
from indexer.spans.search import AnyFilter, Query, as_tokens, new_work
from indexer.spans.table_kernels import MergedTable

__all__ = ["Member", "SpanGroup", "Spans", "maximal_spans", "span_group", "spans_of_group"]

MAX_KEYS = 1 << 21
TOGETHER = 64
PATIENCE = 4
"""Look-ups that may wait for the disk before others help."""
READERS, STRETCH = 16, 4
"""Threads at most that read side by side; each takes a stretch of at least so many times the minimum length, or TWICE."""
CORES = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
BUDGET, AHEAD = 512, 5_000
"""Look-ups, each in one shard, after which as many threads as there are cores go on, if AHEAD more are to be expected."""
NONE: NDArray[np.int32] = np.zeros(0, np.int32)
NO_ROWS: NDArray[np.int64] = np.zeros((1, 1), np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A shard as a question asks it: its number in the group, its arrays (perhaps with units in place of sequences)."""

    number: int
    arrays: SpanArrays
    filter: AnyFilter = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """At most TOGETHER members as the kernels take them: rows i64 [m, ROW], filters i64 [m, 7], numbers i64 [m]."""

    rows: NDArray[np.int64]
    filters: NDArray[np.int64]
    numbers: NDArray[np.int64]
    kept: object
    """What the addresses in rows and filters point to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanGroup:
    """Shards of one token dtype and their merged prefix tables.

    keys    u64 [rows, 2|4]   every `stride`-th row of the shards' prefix tables, sorted
    owners  i32 [rows]        the shard of each; empty where there is one shard
    before  i64 [., shards]   how many of the first j * `every` rows each shard owns
    """

    shards: tuple[SpanArrays, ...]
    keys: NDArray[np.uint64]
    owners: NDArray[np.int32]
    before: NDArray[np.int64]
    every: int
    stride: int
    everything: tuple[Part, ...] = field(default=(), repr=False)
    """All shards, unfiltered: what is asked where no members are named."""

    @property
    def table(self) -> MergedTable:
        """As the kernels take it."""
        return self.keys, self.owners, self.before, self.every, self.stride


@dataclass(frozen=True, kw_only=True, slots=True)
class Spans:
    """Maximal spans of a query, by ascending start (and end): start, end, count i64 [k]; by shard asked i64 [k, m].

    query[start:end] occurs `count` times in the passing sequences, `shard_count` times in those of each shard; its suffix
    ranks there, passing or not, are [shard_lo, shard_hi), equal where it does not occur in passing sequences. `work`
    i64 [3] says what it cost: table searches, tokens compared, ranks scanned for the filter.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    count: NDArray[np.int64]
    shard_lo: NDArray[np.int64]
    shard_hi: NDArray[np.int64]
    shard_count: NDArray[np.int64]
    work: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)


class Stretch(NamedTuple):
    """Spans that begin in query[first:done], as the kernel gives them, and the work done.

    done: `end`, or where it stopped, because there was much to do (`is_busy`) or because the disk was waited for.
    """

    first: int
    end: int
    done: int
    spans: NDArray[np.int64]
    ranks: NDArray[np.int64]
    work: NDArray[np.int64]
    is_busy: bool


def span_group(shards: Sequence[SpanArrays], max_keys: int = MAX_KEYS) -> SpanGroup:
    """Put shards together, once for many questions. Raises SpanIndexError for none, or for differing token dtypes."""
    if len({arrays.tokens.dtype for arrays in shards}) != 1:
        raise SpanIndexError(
            f"shards of a group: expected some of one token dtype, found {len(shards)}; rebuild the index"
        )
    everything = tuple(map(_part, _cut([Member(number=number, arrays=arrays) for number, arrays in enumerate(shards)])))
    if len(shards) == 1:
        return _group_of_one(shards[0], everything)
    stride = -(-sum(len(arrays.prefix_table) for arrays in shards) // max_keys)
    tables = [arrays.prefix_table[::stride] for arrays in shards]
    keys = np.concatenate(tables)
    owners = np.repeat(np.arange(len(shards), dtype=np.int32), [len(table) for table in tables])
    order = np.lexsort(keys.T[::-1])
    keys, owners = np.ascontiguousarray(keys[order]), owners[order]
    every = max(16, len(shards))
    before = np.zeros((len(keys) // every + 1, len(shards)), np.int64)
    np.add.at(before[1:], (np.arange(len(keys) // every * every) // every, owners[: len(keys) // every * every]), 1)
    return SpanGroup(
        shards=tuple(shards), keys=keys, owners=owners, before=before.cumsum(axis=0), every=every, stride=stride,
        everything=everything,
    )  # fmt: skip


def _group_of_one(arrays: SpanArrays, everything: tuple[Part, ...] = ()) -> SpanGroup:
    return SpanGroup(
        shards=(arrays,),
        keys=arrays.prefix_table,
        owners=NONE,
        before=NO_ROWS,
        every=1,
        stride=1,
        everything=everything,
    )


def maximal_spans(arrays: SpanArrays, query: Query, min_length: int, position_filter: AnyFilter = None) -> Spans:
    """`spans_of_group` of one shard alone."""
    members = [Member(number=0, arrays=arrays, filter=position_filter)]
    return spans_of_group(_group_of_one(arrays), query, min_length, members)


def spans_of_group(
    group: SpanGroup,
    query: Query,
    min_length: int,
    members: Sequence[Member] | None = None,
    executor: Executor | None = None,
) -> Spans:
    """Every span of at least `min_length` >= 1 tokens that occurs in a passing sequence and cannot be extended there.

    `members` are the shards to ask, each under its own filter; None asks all, unfiltered. From 8 tokens on, most of a query
    that does not occur is skipped by fingerprints. Raises SpanIndexError for a min_length below 1, a query that is not of
    integers, or a filter that does not fit.
    """
    if min_length < 1:
        raise SpanIndexError(f"maximal spans: expected min_length >= 1, found {min_length}")
    tokens = as_tokens(group.shards[0], query)
    run = map if executor is None or len(group.shards if members is None else members) <= TOGETHER else executor.map
    parts = group.everything if members is None else run(_part, _cut(members))
    return _merged(list(run(lambda part: _spans_of_part(group, part, tokens, min_length), parts)))


def _cut(members: Sequence[Member]) -> list[Sequence[Member]]:
    return [members[at : at + TOGETHER] for at in range(0, len(members), TOGETHER)]


def _part(members: Sequence[Member]) -> Part:
    chosen = [None if member.filter is None else prepare(member.arrays, member.filter) for member in members]
    return Part(
        rows=np.array([member.arrays.row for member in members]),
        filters=np.array([filter_row(m.arrays, each) for m, each in zip(members, chosen, strict=True)], np.int64),
        numbers=np.array([member.number for member in members]),
        kept=(members, chosen),
    )


def _spans_of_part(group: SpanGroup, part: Part, tokens: NDArray[np.unsignedinteger], min_length: int) -> Spans:
    asked = ((part.rows, part.filters, part.numbers, group.table), tokens)
    search = functools.partial(_search, asked, min_length, group.shards[0].separator)
    found = [search(0, len(tokens), PATIENCE, BUDGET if CORES > 1 else NEVER)]
    if found[0].is_busy:
        found += _side_by_side(search, found[0].done, len(tokens), CORES, PATIENCE)
    for one in [each for each in found if each.done < each.end and not each.is_busy]:
        num = min(READERS, max(1, (one.end - one.done) // (STRETCH * min(min_length, TWICE))))
        found += _side_by_side(search, one.done, one.end, num, len(tokens))
    spans, ranks, work = found[0].spans, found[0].ranks, found[0].work
    if len(found) > 1:
        found.sort(key=lambda each: each.first)
        spans, ranks = np.concatenate([each.spans for each in found]), np.concatenate([each.ranks for each in found])
        work = np.sum([each.work for each in found], axis=0)
        kept = spans[:, 1] > np.maximum.accumulate(np.append(0, spans[:-1, 1]))
        spans, ranks = spans[kept], ranks[kept]
    count = ranks[:, :, group_kernels.COUNT]
    return Spans(
        start=spans[:, 0], end=spans[:, 1], count=count.sum(axis=1), shard_lo=ranks[:, :, group_kernels.LO],
        shard_hi=ranks[:, :, group_kernels.HI], shard_count=count, work=work,
    )  # fmt: skip


def _side_by_side(search: Callable[..., Stretch], first: int, end: int, num: int, patience: int) -> list[Stretch]:
    """Search query[first:end] in `num` stretches, the first of them in this thread."""
    edges = np.linspace(first, end, num + 1).astype(int).tolist()
    mine, *rest = itertools.pairwise(edges)
    others = [_readers().submit(search, *each, patience) for each in rest]
    return [search(*mine, patience), *(each.result() for each in others)]


@functools.cache
def _readers() -> ThreadPoolExecutor:
    """Threads that are kept: to start some takes as long as a tenth of a search that waits for the disk."""
    return ThreadPoolExecutor(READERS, "kiseki-reader")


os.register_at_fork(after_in_child=_readers.cache_clear)  # a child has none of its parent's threads


def _search(
    asked: tuple[group_kernels.Group, NDArray[np.unsignedinteger]],
    min_length: int,
    separator: int,
    first: int,
    end: int,
    patience: int,
    budget: int = NEVER,
) -> Stretch:
    work = new_work()
    spans, ranks, done = group_kernels.maximal_spans(
        *asked, first, end, min_length, separator, patience, (budget, AHEAD), work
    )
    return Stretch(first, end, done, spans, ranks, work, done < end and bool(work[SEARCHES] >= budget))


def _merged(parts: Sequence[Spans]) -> Spans:
    if len(parts) == 1:
        return parts[0]
    starts, ends = (np.concatenate([getattr(part, name) for part in parts] or [[]]) for name in ("start", "end"))
    pairs = np.unique(np.stack([starts, -ends], axis=1).astype(np.int64), axis=0)
    furthest = np.maximum.accumulate(np.append(0, -pairs[:, 1]))
    kept = pairs[-pairs[:, 1] > furthest[:-1]]
    start, end = kept[:, 0].copy(), -kept[:, 1]
    by_shard = [
        np.concatenate(columns, axis=1) if columns else np.zeros((0, 0), np.int64)
        for columns in zip(*(_rows_at(part, start, end) for part in parts), strict=True)
    ] or [np.zeros((0, 0), np.int64)] * 3
    work = sum((part.work for part in parts), new_work())
    return Spans(
        start=start, end=end, count=by_shard[2].sum(axis=1), shard_lo=by_shard[0], shard_hi=by_shard[1],
        shard_count=by_shard[2], work=work,
    )  # fmt: skip


def _rows_at(part: Spans, start: NDArray[np.int64], end: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The part's ranks and counts for the spans that are kept, zeros where it does not list them."""
    rows = np.searchsorted(start, part.start)
    rows[rows == len(start)] = 0
    same = (start[rows] == part.start) & (end[rows] == part.end) if len(start) else np.zeros(0, np.bool_)
    for values in (part.shard_lo, part.shard_hi, part.shard_count):
        column = np.zeros((len(start), values.shape[1]), np.int64)
        column[rows[same]] = values[same]
        yield column
