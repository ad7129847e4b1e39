"""Spans of several shards against those of one shard that holds everything."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike

from indexer.spans import group, reference
from indexer.spans import parallel as sharing
from indexer.spans.arrays import BLOCK, SpanArrays, SpanIndexError
from indexer.spans.filters import Filter
from indexer.spans.group import Member, Spans, span_group, spans_of_group
from tests.indexer.spans import shards

RNG = np.random.default_rng


def members_of(parts: Sequence[SpanArrays], filters: Sequence[Filter | None]) -> list[Member]:
    return [
        Member(number=number, arrays=arrays, filter=chosen)
        for number, (arrays, chosen) in enumerate(zip(parts, filters, strict=True))
    ]


def part_of(chosen: Filter | None, first: int, last: int) -> Filter | None:
    if chosen is None:
        return None
    end = None if chosen.last is None else chosen.last - first
    passing = None if chosen.passing is None else chosen.passing[first:last]
    return Filter(first=chosen.first - first, last=end, passing=passing)


def plain(spans: Spans) -> list[list[int]]:
    return np.stack([spans.start, spans.end, spans.count], axis=1).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", shards.DTYPES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_shards_give_what_one_shard_gives(dtype: DTypeLike, data: st.DataObject) -> None:
    sequences = data.draw(shards.shard_sequences(dtype))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sequences) - 1)) if len(sequences) > 1 else st.just(set())))
    bounds = list(zip([0, *cuts], [*cuts, len(sequences)], strict=True))
    whole = shards.build(sequences, dtype)
    parts = [shards.build(sequences[first:last], dtype) for first, last in bounds]
    query = data.draw(shards.queries(sequences, dtype))
    chosen = data.draw(shards.filters(len(sequences)))
    each = [part_of(chosen, first, last) for first, last in bounds]
    together, patience = data.draw(st.sampled_from([1, 2, 64])), data.draw(st.sampled_from([0, sharing.PATIENCE]))
    cores, budget, ahead = data.draw(st.sampled_from([(1, 512, 5_000), (3, 1, 0), (3, 5, 4), (2, 4, 1)]))
    for min_length in (1, 3, 8, 12, 17):
        with (
            patch.object(group, "TOGETHER", together),
            patch.multiple(sharing, PATIENCE=patience, STRETCH=1, CORES=cores, BUDGET=budget, AHEAD=ahead),
        ):
            found = spans_of_group(span_group(parts), query, min_length, members_of(parts, each))
        expected = reference.maximal_spans(whole, query, min_length, chosen)
        assert plain(found) == [[start, end, count] for start, end, _, _, count in expected]
        for row, (start, end, _) in enumerate(plain(found)):
            for shard, part in enumerate(parts):
                lo, hi = int(found.shard_lo[row, shard]), int(found.shard_hi[row, shard])
                if found.shard_count[row, shard]:
                    assert (lo, hi) == reference.find(part, query[start:end])
                    assert found.shard_count[row, shard] == reference.count(part, lo, hi, each[shard])
                else:
                    assert lo == hi


@pytest.mark.parametrize("max_keys", [1 << 20, 40, 1])
@pytest.mark.parametrize("alphabet", [3, 200])
@pytest.mark.parametrize("dtype", shards.DTYPES)
def test_shards_of_many_blocks(dtype: DTypeLike, alphabet: int, max_keys: int) -> None:
    """The merged table with all its keys, with some, and with one; grams that fill whole blocks; copies; a bitmap."""
    rng = RNG(alphabet)
    rows = rng.integers(0, alphabet, (60, 300))
    rows[::7] = rows[0]
    rows[5:30:3, 100:200] = 1
    whole, bounds = shards.build(rows.tolist(), dtype), [(at, at + 12) for at in range(0, 60, 12)]
    parts = [shards.build(rows[first:last].tolist(), dtype) for first, last in bounds]
    assert all(len(part.prefix_table) > 12 for part in parts) and parts[0].num_tokens > 12 * BLOCK
    asked = span_group(parts, max_keys)
    for number in range(12):
        query = np.concatenate(
            [rows[rng.integers(60)][40 * (number % 4) :], rng.integers(0, alphabet, 50), rows[7][:90]]
        )
        bitmap = rng.random(60) < 0.4
        for chosen in (None, Filter(first=9, last=31), Filter(passing=bitmap), Filter(first=20, passing=bitmap)):
            members = members_of(parts, [part_of(chosen, *bound) for bound in bounds])
            for min_length in (5, 8, 20):
                found = spans_of_group(asked, query, min_length, members)
                assert plain(found) == plain(group.maximal_spans(whole, query, min_length, chosen))
        some = spans_of_group(asked, query, 8, [members_of(parts, [None] * 5)[number] for number in (3, 1)])
        both = shards.build([*rows[36:48].tolist(), *rows[12:24].tolist()], dtype)
        assert plain(some) == plain(group.maximal_spans(both, query, 8))


def test_a_span_inside_a_longer_one_of_another_shard_is_dropped() -> None:
    parts = [
        shards.build([[1, 2, 3], [2, 3, 9]]),
        shards.build([[0, 1, 2, 3, 4]]),
        shards.build([[3, 4, 5], [1, 2, 3]]),
    ]
    for together in (1, 2, 3):
        with patch.object(group, "TOGETHER", together):
            found = spans_of_group(span_group(parts), [1, 2, 3, 4, 5], 2)
        assert plain(found) == [[0, 4, 1], [2, 5, 1]]
        assert found.shard_count.tolist() == [[0, 1, 0], [0, 0, 1]]


def test_a_long_copy_in_one_shard_spares_the_others() -> None:
    rng = RNG(1)
    parts = [shards.build(rng.integers(0, 5000, (4, 2000)).tolist()) for _ in range(8)]
    copy = np.asarray(parts[5].tokens[1:1900])
    assert plain(spans_of_group(span_group(parts), copy, 8)) == [[0, 1899, 1]]
    assert spans_of_group(span_group(parts), copy, 8).work[0] < 100


def test_text_that_the_filter_leaves_out_is_turned_away_by_its_grams() -> None:
    rng = RNG(2)
    rows = rng.integers(0, 5000, (20, 500)).tolist()
    spans = group.maximal_spans(shards.build(rows), rows[3], 8, Filter(first=10))
    assert len(spans) == 0
    assert spans.work[0] <= 200 and spans.work[1] < 100


def test_threads_give_the_same() -> None:
    rng = RNG(0)
    parts = [shards.build(rng.integers(0, 3, (20, 200)).tolist()) for _ in range(12)]
    query, asked = rng.integers(0, 3, 2000), span_group(parts)
    alone = spans_of_group(asked, query, 8)
    with patch.object(group, "TOGETHER", 3), ThreadPoolExecutor(4) as executor:
        together = spans_of_group(asked, query, 8, executor=executor)
    for name in ("start", "end", "count", "shard_lo", "shard_hi", "shard_count"):
        assert np.array_equal(getattr(alone, name), getattr(together, name))
    assert len(alone) > 100


def test_no_shards_and_no_spans() -> None:
    part = shards.build([[1]])
    nobody = spans_of_group(span_group([part]), [1], 1, [])
    assert (len(nobody), nobody.shard_lo.shape) == (0, (0, 0))
    for together in (1, 2):
        with patch.object(group, "TOGETHER", together):
            found = spans_of_group(span_group([part, part]), [2], 1)
        assert (len(found), found.shard_lo.shape) == (0, (0, 2))


def test_refused_groups() -> None:
    with pytest.raises(SpanIndexError, match="expected some of one token dtype, found 0"):
        span_group([])
    with pytest.raises(SpanIndexError, match="expected some of one token dtype, found 2"):
        span_group([shards.build([[1]]), shards.build([[1]], np.uint32)])
