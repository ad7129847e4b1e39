"""Finding and matching, against the plain reference, and the reference against looking everywhere."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import DTypeLike

from indexer.spans import group, reference, search
from indexer.spans.arrays import SpanIndexError
from indexer.spans.filters import Filter
from tests.indexer.spans import shards

RNG = np.random.default_rng


@pytest.mark.parametrize("dtype", shards.DTYPES)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_maximal_spans_equal_the_reference(dtype: DTypeLike, data: st.DataObject) -> None:
    sequences = data.draw(shards.shard_sequences(dtype))
    arrays = shards.build(sequences, dtype)
    query = data.draw(shards.queries(sequences, dtype))
    chosen = data.draw(shards.filters(len(sequences)))
    for min_length in {8, *data.draw(st.lists(st.integers(1, 20), min_size=3, max_size=3))}:
        spans = group.maximal_spans(arrays, query, min_length, chosen)
        assert shards.rows(spans) == reference.maximal_spans(arrays, query, min_length, chosen)


@pytest.mark.parametrize("dtype", shards.DTYPES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_longest_match_and_find_equal_the_reference(dtype: DTypeLike, data: st.DataObject) -> None:
    sequences = data.draw(shards.shard_sequences(dtype))
    arrays = shards.build(sequences, dtype)
    query = data.draw(shards.queries(sequences, dtype))
    chosen = data.draw(shards.filters(len(sequences)))
    lengths = [search.longest_match(arrays, query, at, chosen) for at in range(len(query))]
    assert lengths == reference.longest_matches(arrays, query, chosen)
    for size in (1, 2, 7, 8, 9, 30):
        for at in range(0, len(query) - size + 1, 3):
            ngram = query[at : at + size]
            lo, hi = search.find(arrays, ngram)
            assert (lo, hi) == reference.find(arrays, ngram)
            assert hi - lo == shards.occurrences(sequences, ngram)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_reference_equals_looking_everywhere(data: st.DataObject) -> None:
    sequences = data.draw(shards.shard_sequences(np.uint16))
    arrays = shards.build(sequences)
    query = data.draw(shards.queries(sequences, np.uint16))
    chosen = data.draw(shards.filters(len(sequences)))
    passing = sequences if chosen is None else [s for i, s in enumerate(sequences) if passes(chosen, i, len(sequences))]
    lengths = []
    for at in range(len(query)):
        length = 0
        while at + length < len(query) and shards.occurrences(passing, query[at : at + length + 1]):
            length += 1
        lengths.append(length)
    assert reference.longest_matches(arrays, query, chosen) == lengths
    ends = [at + length for at, length in enumerate(lengths)]
    for min_length in (1, 3, 8):
        expected = [
            (at, ends[at], shards.occurrences(passing, query[at : ends[at]]))
            for at in range(len(query))
            if lengths[at] >= min_length and all(ends[before] < ends[at] for before in range(at))
        ]
        found = reference.maximal_spans(arrays, query, min_length, chosen)
        assert [(start, end, count) for start, end, _, _, count in found] == expected


def passes(chosen: Filter, ordinal: int, num_sequences: int) -> bool:
    last = num_sequences if chosen.last is None else chosen.last
    return chosen.first <= ordinal < last and (chosen.passing is None or bool(chosen.passing[ordinal]))


@pytest.mark.parametrize("dtype", shards.DTYPES)
def test_strangers_with_the_same_fingerprint_hide_nothing(dtype: DTypeLike) -> None:
    """Of 50,000 grams about 200 share block and fingerprint with another one that stands before or after them."""
    sequences = RNG(0).integers(0, 30_000, (2_500, 27))
    arrays = shards.build(sequences.tolist(), dtype)
    strangers = 0
    for block in range(0, arrays.num_tokens, 256):
        prints = arrays.fingerprints[block : block + 256]
        strangers += len(prints) - len(np.unique(prints))
    assert strangers > 20
    for sequence in sequences:
        assert shards.rows(group.maximal_spans(arrays, sequence, 8))[0][:2] == (0, 27)
        for at in range(0, 19, 3):
            lo, hi = search.find(arrays, sequence[at : at + 8])
            assert hi - lo == 1


def test_runs_longer_than_a_block() -> None:
    """Grams with more hits than a block, next to others, at every alignment with the blocks."""
    for extra in (0, 1, 100, 255, 256, 257):
        sequences = [[1] * 600, [2] * extra, [3] * 8, [3] * 9, [0] * 700, list(range(2, 14)) * 70]
        arrays = shards.build(sequences)
        query = [9, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3, 3, 3, 3, 5, *range(3, 12), *[0] * 30]
        for min_length in (1, 2, 7, 8, 9):
            for chosen in (None, Filter(first=1), Filter(first=2, last=4), Filter(last=2)):
                spans = group.maximal_spans(arrays, query, min_length, chosen)
                assert shards.rows(spans) == reference.maximal_spans(arrays, query, min_length, chosen)


@pytest.mark.parametrize("period", [1, 2, 3, 7])
def test_periods_longer_than_any_training_run(period: int) -> None:
    """Repeating queries against repeats of several lengths, phases and interruptions."""
    unit = list(range(10, 10 + period))
    sequences = [(unit * 40)[phase : phase + size] for phase, size in ((0, 37), (1, 41), (2, 30), (0, 12), (3, 45))]
    arrays = shards.build([*sequences, sequences[1], [5] * 9])
    clean = (unit * 200)[:180]
    for query in (clean, [5, *clean, 5, *clean], clean[:90] + [5] * 12 + clean[:90], [*clean[:100], 5, *clean[3:]]):
        for min_length in (2, 8, 12, 40):
            for chosen in (None, Filter(first=2), Filter(last=4)):
                spans = group.maximal_spans(arrays, query, min_length, chosen)
                assert shards.rows(spans) == reference.maximal_spans(arrays, query, min_length, chosen)


@pytest.mark.parametrize("unit", [[7], [7, 8], [7, 8, 9]])
def test_a_repetition_that_ends_inside_a_longer_match(unit: list[int]) -> None:
    """The last repeat goes on where the ones before it ended: it must not be taken for one more of them."""
    run = unit * 12
    for tail in ([5], [5, 7, 8], unit[:1], [*unit[1:], 5]):
        arrays = shards.build([run, [*run, *tail], [*run[1:], 6], [4, *run]])
        for query in (run * 3 + tail, run * 3 + tail + run * 2, [4, *run, *run, *tail, 6], [*run[1:], *run, 6, *tail]):
            for min_length in (2, 8, 12):
                spans = group.maximal_spans(arrays, query, min_length)
                assert shards.rows(spans) == reference.maximal_spans(arrays, query, min_length)


def test_many_filters_over_one_shard() -> None:
    """The passing suffix that shares most is often neither beside the insertion point nor on its nearer side."""
    rng = RNG(7)
    arrays = shards.build(rng.integers(0, 2, (60, 40)).tolist())
    query = rng.integers(0, 2, 50).tolist()
    for _ in range(25):
        first = int(rng.integers(0, 40))
        thin = rng.random(60) < rng.choice([0.03, 0.1, 0.5])
        for chosen in (Filter(passing=thin), Filter(first=first, last=first + 3), Filter(first=first, passing=thin)):
            lengths = [search.longest_match(arrays, query, at, chosen) for at in range(len(query))]
            assert lengths == reference.longest_matches(arrays, query, chosen)
            spans = group.maximal_spans(arrays, query, 8, chosen)
            assert shards.rows(spans) == reference.maximal_spans(arrays, query, 8, chosen)


def test_a_range_found_in_vain_is_not_taken_for_a_wider_one() -> None:
    """Hundreds of runs that do not pass share 13 tokens and more; one that passes shares 12."""
    arrays = shards.build([[7] * 900, [7] * 800, [5, *[7] * 12], [*[7] * 12, 5, *[7] * 9]])
    query = [5, *[7] * 40, 6, *[7] * 9, 6, *[7] * 10, 5, *[7] * 30]
    for min_length in (2, 8, 9, 13):
        for chosen in (Filter(first=2), Filter(passing=np.array([0, 0, 1, 0], np.uint8)), Filter(first=3)):
            spans = group.maximal_spans(arrays, query, min_length, chosen)
            assert shards.rows(spans) == reference.maximal_spans(arrays, query, min_length, chosen)


@pytest.mark.parametrize(
    "kind", [list, tuple, np.array, lambda q: np.array(q, np.uint64), lambda q: np.array(q, object)]
)
def test_queries_may_be_of_any_integers(kind: type) -> None:
    arrays = shards.build([[1, 2, 3, 4, 5, 6, 7, 8, 9]])
    assert shards.rows(group.maximal_spans(arrays, kind([7, 1, 2, 3, 65535, 1, 2]), 2)) == [
        (1, 4, 0, 1, 1),
        (5, 7, 0, 1, 1),
    ]


@pytest.mark.parametrize("dtype", shards.DTYPES)
def test_tokens_that_cannot_match(dtype: DTypeLike) -> None:
    arrays = shards.build([[0, 1, 0, 1], [0, 1]], dtype)
    for token in (arrays.separator, arrays.separator + 1, arrays.separator + 2, -1, -(2**63), 2**64, 2**70):
        query = [0, 1, token, 0, 1, 0]
        assert [row[:2] for row in shards.rows(group.maximal_spans(arrays, query, 1))] == [(0, 2), (3, 6)]
        assert search.find(arrays, [1, token]) == (0, 0)
        assert search.longest_match(arrays, query, 0) == 2
        assert search.longest_match(arrays, query, 2) == 0
    assert [row[:2] for row in shards.rows(group.maximal_spans(arrays, [0, 1, -1, 2**63, 0], 1))] == [(0, 2), (4, 5)]


def test_empty_and_short_queries() -> None:
    arrays = shards.build([[1, 2, 3]])
    assert len(group.maximal_spans(arrays, [], 1)) == 0
    assert len(group.maximal_spans(arrays, [1, 2], 8)) == 0
    assert search.longest_match(arrays, [1], 1) == 0


def test_shard_of_empty_sequences() -> None:
    arrays = shards.build([[], []])
    assert len(group.maximal_spans(arrays, list(range(20)), 8)) == 0
    assert search.find(arrays, [0]) == (0, 0)


def test_refused_questions() -> None:
    arrays = shards.build([[1, 2, 3], [4]])
    with pytest.raises(SpanIndexError, match="expected at least one token"):
        search.find(arrays, [])
    with pytest.raises(SpanIndexError, match="min_length >= 1, found 0"):
        group.maximal_spans(arrays, [1], 0)
    with pytest.raises(SpanIndexError, match="a start in 0 … 1, found 2"):
        search.longest_match(arrays, [1], 2)
    with pytest.raises(SpanIndexError, match="found float64"):
        search.find(arrays, np.array([1.0]))
    with pytest.raises(SpanIndexError, match="found object"):
        search.find(arrays, [1, 2.0])  # type: ignore[list-item]
    with pytest.raises(SpanIndexError, match=r"of shape \[1, 2\]"):
        search.find(arrays, np.array([[1, 2]]))
    with pytest.raises(SpanIndexError, match=r"bool or uint8 \[2\].* found bool \[3\]"):
        group.maximal_spans(arrays, [1], 1, Filter(passing=np.ones(3, np.bool_)))
    with pytest.raises(SpanIndexError, match="found int64"):
        group.maximal_spans(arrays, [1], 1, Filter(passing=np.ones(2, np.int64)))  # type: ignore[arg-type]
