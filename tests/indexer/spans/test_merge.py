"""Spans of several shards against those of one shard that holds everything."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.spans import reference, search
from indexer.spans.arrays import SpanIndexError
from indexer.spans.filters import Filter
from indexer.spans.merge import merge_spans, spans_over_shards
from tests.indexer.spans import shards


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_shards_give_what_one_shard_gives(data: st.DataObject) -> None:
    sequences = data.draw(shards.shard_sequences(np.uint16))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sequences) - 1)) if len(sequences) > 1 else st.just(set())))
    bounds = list(zip([0, *cuts], [*cuts, len(sequences)], strict=True))
    whole, parts = shards.build(sequences), [shards.build(sequences[first:last]) for first, last in bounds]
    query = data.draw(shards.queries(sequences, np.uint16))
    chosen = data.draw(shards.filters(len(sequences)))
    each = [None if chosen is None else part_of(chosen, first, last) for first, last in bounds]
    for min_length in (1, 3, 8, 12):
        merged = spans_over_shards(parts, query, min_length, each)
        expected = reference.maximal_spans(whole, query, min_length, chosen)
        found = np.stack([merged.start, merged.end, merged.count], axis=1).tolist()
        assert found == [[start, end, count] for start, end, _, _, count in expected]
        for row, (start, end, *_) in enumerate(found):
            for shard, part in enumerate(parts):
                lo, hi = int(merged.shard_lo[row, shard]), int(merged.shard_hi[row, shard])
                if merged.shard_count[row, shard]:
                    assert (lo, hi) == reference.find(part, query[start:end])
                    assert merged.shard_count[row, shard] == reference.count(part, lo, hi, each[shard])
                else:
                    assert lo == hi


def part_of(chosen: Filter, first: int, last: int) -> Filter:
    end = None if chosen.last is None else chosen.last - first
    passing = None if chosen.passing is None else chosen.passing[first:last]
    return Filter(first=chosen.first - first, last=end, passing=passing)


def test_a_span_inside_a_longer_one_of_another_shard_is_dropped() -> None:
    parts = [
        shards.build([[1, 2, 3], [2, 3, 9]]),
        shards.build([[0, 1, 2, 3, 4]]),
        shards.build([[3, 4, 5], [1, 2, 3]]),
    ]
    merged = spans_over_shards(parts, [1, 2, 3, 4, 5], 2)
    assert list(zip(merged.start, merged.end, merged.count, strict=True)) == [(0, 4, 1), (2, 5, 1)]
    assert merged.shard_count.tolist() == [[0, 1, 0], [0, 0, 1]]


def test_threads_give_the_same() -> None:
    rng = np.random.default_rng(0)
    parts = [shards.build(rng.integers(0, 3, (20, 200)).tolist()) for _ in range(12)]
    query = rng.integers(0, 3, 2000)
    alone = spans_over_shards(parts, query, 8)
    with ThreadPoolExecutor(4) as executor:
        together = spans_over_shards(parts, query, 8, executor=executor)
    for name in alone.__slots__:
        assert np.array_equal(getattr(alone, name), getattr(together, name))
    assert len(alone) > 100


def test_no_shards_and_no_spans() -> None:
    assert len(merge_spans([])) == 0
    empty = search.maximal_spans(shards.build([[1]]), [2], 1)
    merged = merge_spans([empty, empty])
    assert len(merged) == 0
    assert merged.shard_lo.shape == (0, 2)


def test_one_filter_a_shard() -> None:
    part = shards.build([[1, 2]])
    with pytest.raises(SpanIndexError, match="expected one a shard, 2, found 1"):
        spans_over_shards([part, part], [1], 1, [None])
