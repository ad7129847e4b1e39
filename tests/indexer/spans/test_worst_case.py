"""Hard cases, bounded by what the kernels count (table searches, tokens compared, ranks scanned), not by a clock.

The quadratic way would show at once: 100,000 tokens against runs of 20,000 would compare 10^9 tokens or more.
"""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from indexer.spans import group, search
from indexer.spans.arrays import RANGE, SpanArrays
from indexer.spans.filters import Filter
from tests.indexer.spans import shards

RNG = np.random.default_rng
LONG = 100_000


@pytest.fixture(scope="module")
def runs() -> SpanArrays:
    """Runs of one token, of many lengths, again and again, between random tokens."""
    sequences = [[7] * length for length in (20_000, 19_999, 5_000, 300, 20_000, 20_000)]
    noise = [[*RNG(seed).integers(0, 50, 1000).tolist(), *[7] * 1_000] for seed in range(20)]
    return shards.build(sequences + noise)


@pytest.mark.parametrize("min_length", [1, 8, 50])
@pytest.mark.parametrize(
    "chosen", [None, Filter(first=1), Filter(last=4, passing=np.arange(26) % 2 == 1), Filter(first=6)]
)
def test_a_run_longer_than_any_training_run(runs: SpanArrays, min_length: int, chosen: Filter | None) -> None:
    spans = group.maximal_spans(runs, np.full(LONG, 7), min_length, chosen)
    longest = int(spans.end[0])
    assert longest == (1_000 if chosen and chosen.first == 6 else 19_999 if chosen and chosen.last else 20_000)
    assert np.array_equal(spans.start, np.arange(LONG - longest + 1))
    assert np.array_equal(spans.end - spans.start, np.full(len(spans), longest))
    assert len(set(spans.count.tolist())) == 1
    assert spans.work[0] < 300
    half = group.maximal_spans(runs, np.full(LONG // 2, 7), min_length, chosen)
    assert spans.work[1] < half.work[1] + LONG
    assert spans.work[1] < 1_500 * longest


@pytest.mark.parametrize("unit", [2, 5, 64])
def test_a_period_longer_than_any_training_repeat(unit: int) -> None:
    pattern = RNG(unit).integers(0, 1000, unit).tolist()
    cuts = ((0, 9_000), (1, 8_990), (unit // 2, 9_003))
    arrays = shards.build([(pattern * 20_000)[phase : phase + size] for phase, size in cuts])
    query = (pattern * LONG)[:LONG]
    spans = group.maximal_spans(arrays, query, 8)
    starts = np.arange(LONG)
    ends = np.max([starts + size - (starts - phase) % unit for phase, size in cuts], axis=0).clip(max=LONG)
    maximal = np.diff(np.maximum.accumulate(ends), prepend=0) > 0
    assert np.array_equal(spans.start, starts[maximal])
    assert np.array_equal(spans.end, ends[maximal])
    half = group.maximal_spans(arrays, query[: LONG // 2], 8)
    assert spans.work[0] < 2_000
    assert spans.work[1] < half.work[1] + LONG
    assert spans.work[1] < 1_500 * 9_003


@pytest.mark.parametrize("copies", [1, 60])
def test_verbatim_copies_joined_at_common_tokens(copies: int) -> None:
    """Every seam of the query occurs somewhere, so that the span before it cannot be skipped by one look."""
    rng = RNG(0)
    documents = [rng.integers(0, 60_000, 4_000).tolist() for _ in range(6)]
    seams = [before[-30:] + after[:30] for before, after in pairwise(documents)]
    arrays = shards.build(documents * copies + seams)
    query = [token for document in documents for token in document]
    spans = group.maximal_spans(arrays, query, 8)
    assert len(spans) == 2 * len(documents) - 1
    assert spans.count.tolist() == [copies, 1] * (len(documents) - 1) + [copies]
    assert spans.work[0] < 500
    assert spans.work[1] < 100 * len(query)


def test_a_long_copy_that_does_not_pass_costs_nothing() -> None:
    """Without a bound each of 2,500 look-ups would compare up to 20,000 tokens with the copy that does not pass."""
    text = RNG(1).integers(0, 200, 20_000)
    pieces = [text[at : at + 12].tolist() for at in range(0, 20_000, 6)]
    arrays = shards.build([text.tolist(), text.tolist(), *pieces])
    spans = group.maximal_spans(arrays, text, 8, Filter(first=2))
    assert len(spans) == len(pieces) - 1
    assert spans.work[1] < 60 * len(text)


@pytest.fixture(scope="module")
def boilerplate() -> tuple[SpanArrays, NDArray[np.int64]]:
    """A text of 40 tokens, 20,000 times, in all sequences but 3,000 in the middle, which hold only its 6-grams."""
    text = np.arange(40)
    sequences = np.tile(text, (23_000, 1))
    sequences[10_000:13_000] = RNG(0).integers(1_000, 30_000, (3_000, 40))
    for at in range(34):
        sequences[10_000 + at, :6] = text[at : at + 6]
    return shards.build(sequences.tolist()), text


@pytest.mark.parametrize(
    ("chosen", "scanned"),
    [
        (Filter(first=10_000, last=13_000), 20_000),
        (Filter(first=22_999, passing=np.arange(23_000) < 22_000), 0),
        (Filter(last=1, passing=np.arange(23_000) >= 22_000), 0),
        (Filter(first=30_000), 0),
    ],
)
def test_a_filter_that_no_hit_passes(
    boilerplate: tuple[SpanArrays, NDArray[np.int64]], chosen: Filter, scanned: int
) -> None:
    arrays, text = boilerplate
    spans = group.maximal_spans(arrays, text, 8, chosen)
    assert len(spans) == 0
    assert spans.work[2] <= 40 * (scanned + 3 * RANGE)


def test_only_short_parts_pass(boilerplate: tuple[SpanArrays, NDArray[np.int64]]) -> None:
    arrays, text = boilerplate
    chosen = Filter(first=10_000, last=13_000)
    assert shards.rows(group.maximal_spans(arrays, text, 6, chosen)) == [
        (at, at + 6, *search.find(arrays, text[at : at + 6]), 1) for at in range(34)
    ]


def test_every_token_of_a_long_query_absent() -> None:
    arrays = shards.build([list(range(5_000))])
    spans = group.maximal_spans(arrays, np.arange(LONG) + 10_000, 16)
    assert len(spans) == 0
    assert spans.work[0] <= LONG / 9 + 4
    assert spans.work[1] == 0
