"""Exact search for one n-gram in the span index of one shard: plain functions over `SpanArrays`.

Rules:

1. Everything is exact: lengths, intervals, counts, extents, bins, pages. Fingerprints and summaries only save work.
2. Under a filter, "occurs" means: occurs in a sequence that passes. The suffix ranks [lo, hi) of a span are those of the
   whole shard, so that they can be asked further under the same or any other filter.
3. Query tokens that no training token can equal (negative, the separator, beyond the dtype) match nothing.
4. The kernels release the GIL: several shards, or several queries, run side by side in threads.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from indexer.spans.arrays import SpanArrays, SpanIndexError
from indexer.spans.filters import Filter
from indexer.spans.kernels import hits as hit_kernels
from indexer.spans.kernels import matches as match_kernels
from indexer.spans.kernels import packing as kernels
from indexer.spans.prepare import PreparedFilter, prepare

__all__ = [
    "AnyFilter",
    "Order",
    "Query",
    "count",
    "extent",
    "find",
    "histogram",
    "longest_match",
    "ordinal_of",
    "page",
]

Query: TypeAlias = Sequence[int] | NDArray[Any]
AnyFilter: TypeAlias = Filter | PreparedFilter | None
Order: TypeAlias = Literal["position", "position_descending"]


def shard_of(arrays: SpanArrays) -> kernels.Shard:
    """The arrays as the kernels take them."""
    return (
        arrays.tokens,
        arrays.suffix_array,
        arrays.fingerprints,
        arrays.prefix_table,
        arrays.block_range,
        arrays.superblock_range,
        arrays.sequence_starts,
    )


def as_tokens(arrays: SpanArrays, query: Query) -> NDArray[Any]:
    """The query in the shard's token dtype; what cannot match becomes the separator.

    Raises SpanIndexError if it is not one-dimensional or not of integers.
    """
    ids = np.asarray(query)
    if ids.size == 0:
        ids = ids.astype(np.int64)
    elif ids.dtype.kind == "O" or (ids.dtype.kind == "f" and not isinstance(query, np.ndarray)):
        ids = from_objects(query, arrays.separator)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise SpanIndexError(
            f"query: expected integer token ids [length], found {ids.dtype} of shape {list(ids.shape)}"
        )
    if ids.dtype != arrays.tokens.dtype:
        known = (ids >= 0) & (ids < arrays.separator)
        ids = np.where(known, ids, arrays.separator).astype(arrays.tokens.dtype)
    tokens = np.ascontiguousarray(ids).view()
    tokens.setflags(write=False)
    return tokens


def from_objects(query: Query, separator: int) -> NDArray[Any]:
    """Integers of any size, which numpy may take for objects or floats, as i64 or, if any is none, as they are."""
    ids = np.asarray(query, object)
    if not all(isinstance(token, int | np.integer) for token in ids.flat):
        return ids
    return np.array([int(token) if 0 <= token < separator else -1 for token in ids.flat], np.int64).reshape(ids.shape)


def find(arrays: SpanArrays, query: Query) -> tuple[int, int]:
    """Suffix ranks [lo, hi) of a token n-gram of any length >= 1; hi - lo is its count, (0, 0) if it does not occur.

    Raises SpanIndexError for an empty query.
    """
    tokens = as_tokens(arrays, query)
    if len(tokens) == 0:
        raise SpanIndexError("find: expected at least one token, found none")
    return match_kernels.find_ranks(shard_of(arrays), tokens, new_work())


def longest_match(arrays: SpanArrays, query: Query, at: int, position_filter: AnyFilter = None) -> int:
    """Length of the longest prefix of query[at:] that occurs in a passing sequence; 0 if its first token does not.

    Raises SpanIndexError if `at` is not in 0 … len(query).
    """
    tokens = as_tokens(arrays, query)
    if not 0 <= at <= len(tokens):
        raise SpanIndexError(f"longest_match: expected a start in 0 … {len(tokens)}, found {at}")
    return match_kernels.longest_length(
        shard_of(arrays), prepare(arrays, position_filter).chosen, tokens[at:], new_work()
    )


def new_work() -> NDArray[np.int64]:
    """Fresh counters for the kernels."""
    return np.zeros(3, np.int64)


def check_ranks(arrays: SpanArrays, lo: int, hi: int) -> None:
    """Refuse what is no range of suffix ranks of the shard."""
    if not 0 <= lo <= hi <= arrays.num_tokens:
        raise SpanIndexError(f"suffix ranks: expected 0 <= lo <= hi <= {arrays.num_tokens}, found [{lo}, {hi})")


def count(arrays: SpanArrays, lo: int, hi: int, position_filter: AnyFilter = None) -> int:
    """How many of the hits at suffix ranks [lo, hi) lie in passing sequences."""
    check_ranks(arrays, lo, hi)
    return int(hit_kernels.count_passing(shard_of(arrays), prepare(arrays, position_filter).chosen, lo, hi))


def extent(arrays: SpanArrays, lo: int, hi: int, position_filter: AnyFilter = None) -> tuple[int, int] | None:
    """Ordinals of the first and the last passing sequence with a hit at suffix ranks [lo, hi); None without one."""
    check_ranks(arrays, lo, hi)
    first, last = hit_kernels.extent_passing(shard_of(arrays), prepare(arrays, position_filter).chosen, lo, hi)
    if first < 0:
        return None
    ordinals, _ = ordinal_of(arrays, np.array([first, last]))
    return int(ordinals[0]), int(ordinals[1])


def histogram(
    arrays: SpanArrays, lo: int, hi: int, ordinal_edges: Sequence[int] | NDArray[np.int64],
    position_filter: AnyFilter = None,
) -> NDArray[np.int64]:  # fmt: skip
    """Passing hits at suffix ranks [lo, hi) by sequence ordinal: i64 [k] for k + 1 edges, bin j = [edge j, edge j + 1).

    Edges do not fall and may reach beyond the shard (bins of a run meet shards of a part of it). Raises SpanIndexError
    for edges that fall or fewer than two.
    """
    check_ranks(arrays, lo, hi)
    edges = np.asarray(ordinal_edges, np.int64)
    if edges.ndim != 1 or len(edges) < 2 or bool((np.diff(edges) < 0).any()):
        raise SpanIndexError(f"histogram: expected two or more edges that do not fall, found {edges.tolist()[:20]}")
    positions = arrays.sequence_starts[np.clip(edges, 0, arrays.num_sequences)]
    counts = np.zeros(len(edges) - 1, np.int64)
    chosen = prepare(arrays, position_filter).chosen
    hit_kernels.histogram_passing(shard_of(arrays), chosen, lo, hi, positions, counts)
    return counts


def page(
    arrays: SpanArrays, lo: int, hi: int, position_filter: AnyFilter = None, *, order: Order = "position",
    after: int | None = None, limit: int,
) -> NDArray[np.int64]:  # fmt: skip
    """The next `limit` passing hits at suffix ranks [lo, hi): token positions i64, ascending or descending.

    `after` is the last position of the page before (exclusive), None for the first page. One pass, memory for `limit`
    positions. Raises SpanIndexError for a negative limit or an unknown order.
    """
    check_ranks(arrays, lo, hi)
    if limit < 0 or order not in ("position", "position_descending"):
        raise SpanIndexError(f"page: expected a limit >= 0 and an order of {Order}, found {limit} and {order!r}")
    descending = order == "position_descending"
    first, end, passing, marks, shift = prepare(arrays, position_filter).chosen
    if after is not None:
        first, end = (first, min(end, after)) if descending else (max(first, after + 1), end)
    heap = np.empty(min(limit, hi - lo), np.int64)
    kept = hit_kernels.page_passing(shard_of(arrays), (first, end, passing, marks, shift), lo, hi, descending, heap)
    positions = np.sort(heap[:kept])
    return -positions if descending else positions


def ordinal_of(arrays: SpanArrays, positions: Query) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(ordinals, offsets in the sequence) of token positions, i64 each. SpanIndexError for a position out of the shard."""
    at = np.asarray(positions, np.int64)
    if at.size and (int(at.min()) < 0 or int(at.max()) >= arrays.num_tokens):
        raise SpanIndexError(
            f"ordinal_of: expected positions 0 … {arrays.num_tokens - 1}, found {at.min()} … {at.max()}"
        )
    ordinals = np.searchsorted(arrays.sequence_starts, at, side="right") - 1
    return ordinals.astype(np.int64), at - arrays.sequence_starts[ordinals]
