"""Maximal spans of a run from those of its shards.

Rules:

1. Shards are cut between sequences, so that whatever occurs in the run occurs in one of its shards as a whole.
2. A span is maximal in the run exactly if a shard lists it and no shard lists a longer one around it. (It occurs
   somewhere; a longer one would occur in the run too, hence it is maximal there. And a longer one that occurs anywhere
   lies in a listed one.)
3. Its count is the sum over the shards that list the very same span; no other look-up is due. (A shard where it occurs
   without being listed lists a longer one around it, and then it is not maximal in the run.)
4. All of this holds with filters, if each shard was searched under its part of the same one.
"""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from indexer.spans.arrays import SpanArrays, SpanIndexError
from indexer.spans.search import AnyFilter, Query, Spans, maximal_spans

__all__ = ["MergedSpans", "merge_spans", "spans_over_shards"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MergedSpans:
    """Maximal spans of a query in m shards, by ascending start: start, end, count i64 [k]; by shard i64 [k, m].

    `count` is the sum of `shard_count`; `shard_lo` and `shard_hi` are the suffix ranks in each shard, equal where the span
    does not occur in passing sequences.
    """

    start: NDArray[np.int64]
    end: NDArray[np.int64]
    count: NDArray[np.int64]
    shard_lo: NDArray[np.int64]
    shard_hi: NDArray[np.int64]
    shard_count: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)


def merge_spans(per_shard: Sequence[Spans]) -> MergedSpans:
    """Merge the spans that each shard gave for the same query and min_length."""
    if len(per_shard) == 1:
        only = per_shard[0]
        lo, hi, count = (getattr(only, name).reshape(-1, 1) for name in ("lo", "hi", "count"))
        return MergedSpans(
            start=only.start, end=only.end, count=only.count, shard_lo=lo, shard_hi=hi, shard_count=count
        )
    starts, ends = (np.concatenate([getattr(spans, name) for spans in per_shard] or [[]]) for name in ("start", "end"))
    pairs = np.unique(np.stack([starts, -ends], axis=1).astype(np.int64), axis=0)
    furthest = np.maximum.accumulate(np.append(0, -pairs[:, 1]))
    kept = pairs[-pairs[:, 1] > furthest[:-1]]
    start, end = kept[:, 0].copy(), -kept[:, 1]
    lo, hi, count = (np.zeros((len(kept), len(per_shard)), np.int64) for _ in range(3))
    for shard, spans in enumerate(per_shard):
        rows = np.searchsorted(start, spans.start)
        rows[rows == len(start)] = 0
        same = (start[rows] == spans.start) & (end[rows] == spans.end) if len(start) else np.zeros(0, np.bool_)
        lo[rows[same], shard], hi[rows[same], shard] = spans.lo[same], spans.hi[same]
        count[rows[same], shard] = spans.count[same]
    return MergedSpans(start=start, end=end, count=count.sum(axis=1), shard_lo=lo, shard_hi=hi, shard_count=count)


def spans_over_shards(
    shards: Sequence[SpanArrays],
    query: Query,
    min_length: int,
    filters: Sequence[AnyFilter] | None = None,
    executor: Executor | None = None,
) -> MergedSpans:
    """Maximal spans of a query in all shards, each under its own filter (ordinals are those of the shard).

    With an executor of threads the shards are searched side by side. Raises SpanIndexError for a number of filters
    that is not that of the shards, and as `maximal_spans` does.
    """
    chosen: list[AnyFilter] = [None] * len(shards) if filters is None else list(filters)
    if len(chosen) != len(shards):
        raise SpanIndexError(f"filters: expected one a shard, {len(shards)}, found {len(chosen)}")
    run = map if executor is None else executor.map
    return merge_spans(list(run(maximal_spans, shards, repeat(query), repeat(min_length), chosen)))
