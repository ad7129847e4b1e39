"""Counting without kernels says what the kernels say, under any filter."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.spans.arrays import SpanIndexError
from indexer.spans.build import build_span_arrays
from indexer.spans.filters import Filter
from indexer.spans.search import count, find
from indexer.trace.counts import count_without_kernels

TOKENS = st.integers(0, 3)


@settings(max_examples=60, deadline=None)
@given(
    sequences=st.lists(st.lists(TOKENS, max_size=12), min_size=1, max_size=8),
    queries=st.lists(st.lists(TOKENS | st.sampled_from([-1, 65534, 65535, 65536, 2**40]), min_size=1, max_size=5), min_size=1),
    dtype=st.sampled_from(["uint16", "uint32"]),
    bounds=st.tuples(st.integers(0, 9), st.none() | st.integers(0, 9)),
    passing=st.none() | st.lists(st.booleans(), min_size=8, max_size=8),
)  # fmt: skip
def test_as_the_kernels_count(
    tmp_path_factory: pytest.TempPathFactory,
    sequences: list[list[int]],
    queries: list[list[int]],
    dtype: str,
    bounds: tuple[int, int | None],
    passing: list[bool] | None,
) -> None:
    arrays = build_span_arrays(
        [np.array(tokens, dtype) for tokens in sequences], dtype, tmp_path_factory.mktemp("shard")
    )
    bitmap = None if passing is None else np.array(passing[: len(sequences)])
    chosen = Filter(first=bounds[0], last=bounds[1], passing=bitmap)
    for query in queries:
        lo, hi = find(arrays, query)
        assert count_without_kernels(arrays, query, chosen) == count(arrays, lo, hi, chosen)


def test_more_hits_than_are_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.trace.counts.POSITIONS_AT_ONCE", 7)
    arrays = build_span_arrays(np.zeros((5, 20), np.uint16), "uint16", tmp_path)
    assert count_without_kernels(arrays, [0, 0], Filter(first=1, last=4)) == 3 * 19
    with pytest.raises(SpanIndexError, match="at least one token"):
        count_without_kernels(arrays, [], Filter())
