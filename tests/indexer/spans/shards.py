"""Small shards and queries for the tests of the span index."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from hypothesis import strategies as st
from numpy.typing import DTypeLike, NDArray

from indexer.spans.arrays import SpanArrays
from indexer.spans.build import build_span_arrays
from indexer.spans.filters import Filter
from indexer.spans.group import Spans

Sequences = list[list[int]]
DTYPES = (np.uint16, np.uint32)


def build(sequences: Sequence[Sequence[int]], dtype: DTypeLike = np.uint16) -> SpanArrays:
    """A shard of those sequences; its file is gone, its mapping stays. Nothing is synced: there are thousands."""
    with TemporaryDirectory() as directory, patch("os.fsync"):
        return build_span_arrays([np.array(s, np.int64) for s in sequences], dtype, Path(directory))


def rows(spans: Spans) -> list[tuple[int, ...]]:
    """Spans of one shard as (start, end, lo, hi, count)."""
    columns = spans.start, spans.end, spans.shard_lo[:, 0], spans.shard_hi[:, 0], spans.count
    return [tuple(row) for row in np.stack(columns, axis=1).tolist()]


def occurrences(sequences: Sequence[Sequence[int]], ngram: Sequence[int]) -> int:
    """How often an n-gram occurs, by looking everywhere."""
    size = len(ngram)
    return sum(list(s[at : at + size]) == list(ngram) for s in sequences for at in range(len(s) - size + 1))


@st.composite
def token_lists(draw: st.DrawFn, dtype: DTypeLike, max_size: int = 60) -> list[int]:
    """Tokens of a tiny alphabet, of runs, or from the top of the dtype."""
    top = int(np.iinfo(np.dtype(dtype)).max) - 1
    alphabet = draw(st.sampled_from([(0,), (0, 1), (1, 2, 3), (0, 7, top), (1, 255, 256, 300), tuple(range(40))]))
    tokens = draw(st.lists(st.sampled_from(alphabet), max_size=max_size))
    return tokens + [draw(st.sampled_from(alphabet))] * draw(st.integers(0, 40))


@st.composite
def shard_sequences(draw: st.DrawFn, dtype: DTypeLike) -> Sequences:
    """Up to ten sequences of differing lengths, some of them again, some empty."""
    sequences = draw(st.lists(token_lists(dtype), min_size=1, max_size=6))
    again = draw(st.lists(st.sampled_from(sequences), max_size=4))
    return sequences + again


@st.composite
def queries(draw: st.DrawFn, sequences: Sequences, dtype: DTypeLike) -> list[int]:
    """Cuts of the sequences, other tokens, and tokens that cannot match, one after the other."""
    query: list[int] = []
    separator = int(np.iinfo(np.dtype(dtype)).max)
    for _ in range(draw(st.integers(0, 4))):
        sequence = draw(st.sampled_from(sequences))
        first, last = sorted(draw(st.tuples(st.integers(0, len(sequence)), st.integers(0, len(sequence)))))
        query += sequence[first:last]
        query += draw(st.just([]) | token_lists(dtype, 10) | st.just([separator]) | st.just([-1]) | st.just([2**40]))
    return query


@st.composite
def filters(draw: st.DrawFn, num_sequences: int) -> Filter | None:
    """No filter, a range of ordinals, a bitmap, or both; often empty."""
    ordinal = st.integers(-1, num_sequences + 1)
    bitmap = st.lists(st.booleans(), min_size=num_sequences, max_size=num_sequences)
    if draw(st.booleans()):
        return None
    passing: NDArray[Any] | None = np.array(draw(bitmap), draw(st.sampled_from([np.bool_, np.uint8])))
    return Filter(
        first=draw(st.just(0) | ordinal),
        last=draw(st.none() | ordinal),
        passing=draw(st.sampled_from([None, passing])),
    )
