"""The search once more, slow and plain: the oracle of the tests, and what to read to know what an answer means.

It looks at every position of the shard for every token of the query, in numpy, without suffix array, fingerprints,
summaries or numba (the suffix array serves only to say at which ranks the positions stand).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.spans.arrays import SpanArrays
from indexer.spans.filters import Filter

__all__ = [
    "count",
    "extent",
    "find",
    "histogram",
    "longest_match",
    "longest_matches",
    "maximal_spans",
    "ordinals",
    "page",
    "passing_positions",
    "shared_lengths",
]


def ordinals(arrays: SpanArrays) -> NDArray[np.int64]:
    """Sequence ordinal of every position, i64 [n]."""
    return np.repeat(np.arange(arrays.num_sequences), np.diff(arrays.sequence_starts))


def passing_positions(arrays: SpanArrays, chosen: Filter | None = None) -> NDArray[np.bool_]:
    """Whether the sequence at each position passes, bool [n]."""
    at = ordinals(arrays)
    passes = np.ones(arrays.num_tokens, np.bool_)
    if chosen is not None:
        passes = at >= chosen.first
        if chosen.last is not None:
            passes &= at < chosen.last
        if chosen.passing is not None:
            passes &= chosen.passing[at] != 0
    return passes


def shared_lengths(arrays: SpanArrays, query: Sequence[int]) -> NDArray[np.int64]:
    """How many tokens query[i:] shares with the tokens at each position, within the sequence: i64 [len(query) + 1, n]."""
    tokens = arrays.tokens.astype(np.int64)
    shared = np.zeros((len(query) + 1, arrays.num_tokens), np.int64)
    for i in range(len(query) - 1, -1, -1):
        if 0 <= query[i] < arrays.separator:
            after = np.append(shared[i + 1][1:], 0)
            shared[i] = np.where(tokens == int(query[i]), after + 1, 0)
    return shared


def longest_matches(arrays: SpanArrays, query: Sequence[int], chosen: Filter | None = None) -> list[int]:
    """Length of the longest passing match at every start of the query."""
    shared = shared_lengths(arrays, query)[:-1]
    return [int(row) for row in (shared * passing_positions(arrays, chosen)).max(axis=1)]


def longest_match(arrays: SpanArrays, query: Sequence[int], at: int, chosen: Filter | None = None) -> int:
    """Length of the longest passing match at one start."""
    return longest_matches(arrays, query[at:], chosen)[0] if at < len(query) else 0


def find(arrays: SpanArrays, ngram: Sequence[int]) -> tuple[int, int]:
    """Suffix ranks [lo, hi) of an n-gram; (0, 0) if it does not occur."""
    hits = shared_lengths(arrays, ngram)[0] == len(ngram)
    ranks = np.flatnonzero(hits[arrays.suffix_array])
    return (int(ranks[0]), int(ranks[-1]) + 1) if len(ranks) else (0, 0)


def maximal_spans(
    arrays: SpanArrays, query: Sequence[int], min_length: int, chosen: Filter | None = None
) -> list[tuple[int, int, int, int, int]]:
    """(start, end, lo, hi, count) of every maximal span of at least min_length tokens."""
    found, last_end = [], 0
    for start, length in enumerate(longest_matches(arrays, query, chosen)):
        if length >= min_length and start + length > last_end:
            lo, hi = find(arrays, query[start : start + length])
            found.append((start, start + length, lo, hi, count(arrays, lo, hi, chosen)))
        last_end = max(last_end, start + length)
    return found


def hits(arrays: SpanArrays, lo: int, hi: int, chosen: Filter | None) -> NDArray[Any]:
    """Positions of the passing hits at suffix ranks [lo, hi), ascending."""
    positions = np.sort(arrays.suffix_array[lo:hi].astype(np.int64))
    return positions[passing_positions(arrays, chosen)[positions]]


def count(arrays: SpanArrays, lo: int, hi: int, chosen: Filter | None = None) -> int:
    """Number of passing hits."""
    return len(hits(arrays, lo, hi, chosen))


def extent(arrays: SpanArrays, lo: int, hi: int, chosen: Filter | None = None) -> tuple[int, int] | None:
    """First and last passing ordinal with a hit."""
    at = ordinals(arrays)[hits(arrays, lo, hi, chosen)]
    return (int(at[0]), int(at[-1])) if len(at) else None


def histogram(
    arrays: SpanArrays, lo: int, hi: int, edges: Sequence[int], chosen: Filter | None = None
) -> list[int]:  # fmt: skip
    """Passing hits in each bin of ordinals."""
    at = ordinals(arrays)[hits(arrays, lo, hi, chosen)]
    return [int(((at >= low) & (at < high)).sum()) for low, high in pairwise(edges)]


def page(
    arrays: SpanArrays, lo: int, hi: int, chosen: Filter | None, descending: bool, after: int | None, limit: int
) -> list[int]:
    """The next positions of passing hits."""
    positions = [int(position) for position in hits(arrays, lo, hi, chosen)]
    if after is not None:
        positions = [position for position in positions if (position < after if descending else position > after)]
    return (positions[::-1] if descending else positions)[:limit]
