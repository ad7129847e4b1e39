"""All maximal spans of a query in the shards of a run, searched together.

Rules:

1. Shards are cut between sequences, so that whatever occurs in the run occurs in one of its shards as a whole.
2. A group has its shards' prefix tables merged into one sorted table of at most MAX_KEYS rows (every `stride`-th row of
   each where they are more): one search in it says where a gram stands in every shard.
3. Up to TOGETHER shards are searched by one kernel, which shares what it learns among them. More are searched side by
   side, in threads if there is an executor, and their spans merged: one is maximal in the run exactly if a part lists it
   and no part lists a longer one around it. (A longer one that occurs anywhere lies in a listed one.) Its count is the sum
   over the parts that list it. (A part where it occurs unlisted lists a longer one around it.)
4. Query tokens that no training token can equal cut the query in pieces.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from indexer.spans.arrays import SpanArrays, SpanIndexError
from indexer.spans.kernels import group as group_kernels
from indexer.spans.kernels.table import MergedTable
from indexer.spans.parallel import search_spans
from indexer.spans.prepare import filter_row, prepare
from indexer.spans.search import AnyFilter, Query, as_tokens, new_work

__all__ = ["Member", "SpanGroup", "Spans", "maximal_spans", "span_group", "spans_of_group"]

MAX_KEYS = 1 << 21
TOGETHER = 64
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
    asked = (part.rows, part.filters, part.numbers, group.table)
    spans, ranks, work = search_spans(asked, tokens, min_length, group.shards[0].separator)
    count = ranks[:, :, group_kernels.COUNT]
    return Spans(
        start=spans[:, 0], end=spans[:, 1], count=count.sum(axis=1), shard_lo=ranks[:, :, group_kernels.LO],
        shard_hi=ranks[:, :, group_kernels.HI], shard_count=count, work=work,
    )  # fmt: skip


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
