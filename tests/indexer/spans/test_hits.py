"""Counting, bounding, binning and paging hits, against the plain reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.spans import group, reference, search
from indexer.spans.arrays import SpanArrays, SpanIndexError
from indexer.spans.filters import Filter
from indexer.spans.kernels import hits as hit_kernels
from indexer.spans.prepare import prepare
from tests.indexer.spans import shards

RNG = np.random.default_rng


def many_sequences() -> SpanArrays:
    """500 sequences of 0 … 400 tokens: several superblocks of suffixes, hits everywhere."""
    rng = RNG(3)
    return shards.build([rng.integers(0, 3, rng.integers(0, 400)).tolist() for _ in range(500)])


@pytest.fixture(scope="module")
def arrays() -> SpanArrays:
    return many_sequences()


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_walks_equal_the_reference(data: st.DataObject) -> None:
    sequences = data.draw(shards.shard_sequences(np.uint16))
    small = shards.build(sequences)
    chosen = data.draw(shards.filters(len(sequences)))
    lo, hi = sorted(data.draw(st.tuples(*[st.integers(0, small.num_tokens)] * 2)))
    edges = sorted(data.draw(st.lists(st.integers(-2, len(sequences) + 2), min_size=2, max_size=8)))
    check_walks(small, lo, hi, chosen, edges, data.draw(st.none() | st.integers(-1, small.num_tokens)))


@pytest.mark.parametrize("seed", range(8))
def test_walks_over_many_blocks_equal_the_reference(arrays: SpanArrays, seed: int) -> None:
    rng = RNG(seed)
    lo, hi = sorted(rng.integers(0, arrays.num_tokens + 1, 2).tolist())
    first, last = sorted(rng.integers(0, 501, 2).tolist())
    thin = rng.random(500) < 0.05
    edges = np.unique(rng.integers(-10, 520, 40)).tolist()
    after = int(rng.integers(0, arrays.num_tokens))
    for chosen in (
        None,
        Filter(last=last),
        Filter(first=first),
        Filter(first=first, last=last),
        Filter(first=250, last=251),
        Filter(passing=thin),
        Filter(first=first, last=last, passing=thin),
        Filter(first=9, last=9),
        Filter(last=-1),
        Filter(first=-5, last=10_000),
        Filter(first=10_000),
        Filter(passing=np.zeros(500, np.uint8)),
    ):
        check_walks(arrays, lo, hi, chosen, edges, after)


def check_walks(
    arrays: SpanArrays, lo: int, hi: int, chosen: Filter | None, edges: list[int], after: int | None
) -> None:
    assert search.count(arrays, lo, hi, chosen) == reference.count(arrays, lo, hi, chosen)
    assert search.extent(arrays, lo, hi, chosen) == reference.extent(arrays, lo, hi, chosen)
    bins = search.histogram(arrays, lo, hi, edges, chosen)
    assert bins.tolist() == reference.histogram(arrays, lo, hi, edges, chosen)
    orders: tuple[search.Order, ...] = ("position", "position_descending")
    for order in orders:
        for limit in (0, 1, 7, 300):
            for start in (None, after):
                found = search.page(arrays, lo, hi, chosen, order=order, after=start, limit=limit)
                descending = order == "position_descending"
                assert found.tolist() == reference.page(arrays, lo, hi, chosen, descending, start, limit)


@pytest.mark.parametrize("order", ["position", "position_descending"])
def test_pages_follow_each_other_without_gap(arrays: SpanArrays, order: search.Order) -> None:
    lo, hi = search.find(arrays, [1, 2, 0])
    chosen = Filter(first=20, passing=RNG(1).random(500) < 0.5)
    pages: list[int] = []
    after = None
    while len(found := search.page(arrays, lo, hi, chosen, order=order, after=after, limit=100)):
        pages += found.tolist()
        after = pages[-1]
    expected = reference.hits(arrays, lo, hi, chosen).tolist()
    assert pages == (expected if order == "position" else expected[::-1])
    assert len(pages) > 1000


def test_ordinals_and_offsets(arrays: SpanArrays) -> None:
    ordinals, offsets = search.ordinal_of(arrays, np.arange(arrays.num_tokens))
    assert np.array_equal(ordinals, reference.ordinals(arrays))
    assert np.array_equal(arrays.sequence_starts[ordinals] + offsets, np.arange(arrays.num_tokens))


@pytest.mark.parametrize("lengths", [[1] * 300 + [5000], [5000] + [1] * 300, [0] * 1000 + [7], [3] * 64, [9]])
def test_bitmaps_over_uneven_sequences(lengths: list[int]) -> None:
    """The ordinal of a position is guessed from the mean length: it must be found where that is far off."""
    uneven = shards.build([[1] * length for length in lengths])
    for ordinal in {0, len(lengths) // 2, len(lengths) - 1}:
        passing = np.zeros(len(lengths), np.bool_)
        passing[ordinal] = True
        lo, hi = search.find(uneven, [1])
        assert search.count(uneven, lo, hi, Filter(passing=passing)) == lengths[ordinal]


@pytest.mark.parametrize("seed", range(4))
def test_nearest_passing_ranks(arrays: SpanArrays, seed: int) -> None:
    """Upward and downward; in the second shard suffix order follows positions, and whole superblocks drop out."""
    rng = RNG(seed)
    ordered = shards.build([[ordinal] * 700 for ordinal in range(300)])
    for shard in (arrays, ordered):
        first = int(rng.integers(0, shard.num_sequences))
        thin = rng.random(shard.num_sequences) < 0.01
        for chosen in (
            Filter(first=first, last=first + 1),
            Filter(last=first),
            Filter(first=first),
            Filter(passing=thin),
        ):
            ranks = np.flatnonzero(reference.passing_positions(shard, chosen)[shard.suffix_array])
            for _ in range(20):
                lo, hi = sorted(rng.integers(0, shard.num_tokens + 1, 2).tolist())
                inside = ranks[(ranks >= lo) & (ranks < hi)].tolist() or [-1]
                question = search.shard_of(shard), prepare(shard, chosen).chosen, lo, hi, search.new_work()
                assert hit_kernels.next_passing(*question) == inside[0]
                assert hit_kernels.previous_passing(*question) == inside[-1]
                assert search.extent(shard, lo, hi, chosen) == reference.extent(shard, lo, hi, chosen)


def test_a_prepared_filter_answers_as_the_filter(arrays: SpanArrays) -> None:
    chosen = Filter(first=3, passing=RNG(2).random(500) < 0.1)
    prepared = prepare(arrays, chosen)
    assert prepare(arrays, prepared) is prepared
    lo, hi = search.find(arrays, [1, 2, 0])
    assert search.count(arrays, lo, hi, prepared) == reference.count(arrays, lo, hi, chosen) > 0
    query = RNG(3).integers(0, 3, 100)
    found, expected = (group.maximal_spans(arrays, query, 8, each) for each in (prepared, chosen))
    assert shards.rows(found) == shards.rows(expected)


def test_refused_questions(arrays: SpanArrays) -> None:
    for lo, hi in ((-1, 3), (4, 3), (0, arrays.num_tokens + 1)):
        with pytest.raises(SpanIndexError, match="suffix ranks: expected 0 <= lo <= hi"):
            search.count(arrays, lo, hi)
    with pytest.raises(SpanIndexError, match="two or more edges"):
        search.histogram(arrays, 0, 1, [3])
    with pytest.raises(SpanIndexError, match="edges that do not fall"):
        search.histogram(arrays, 0, 1, [3, 2])
    with pytest.raises(SpanIndexError, match="limit >= 0"):
        search.page(arrays, 0, 1, limit=-1)
    with pytest.raises(SpanIndexError, match="found 1 and 'rank'"):
        search.page(arrays, 0, 1, limit=1, order="rank")  # type: ignore[arg-type]
    for position in (-1, arrays.num_tokens):
        with pytest.raises(SpanIndexError, match="expected positions 0 …"):
            search.ordinal_of(arrays, [position])
