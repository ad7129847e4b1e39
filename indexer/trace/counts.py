"""How often a token n-gram occurs in the selected rows. Exact.

The kernels that search shards load numba, which takes half a second. A command that counts one n-gram in a few shards does
without: two binary searches in the suffix array say where the n-gram stands, and the filter is applied to those positions.
Whoever has the kernels loaded already, or many shards, uses them.
"""

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from indexer.reader import IndexReader
from indexer.selection.rows import SelectedShard, Selection
from indexer.spans.arrays import SpanArrays, SpanIndexError
from indexer.spans.filters import Filter
from indexer.trace.input import check_vocabulary
from train_hooks.export_format.errors import QueryError

__all__ = ["NgramCount", "count_in_all_shards", "count_of_ngram", "count_without_kernels", "ids_of", "needs_kernels"]

FEW_SHARDS = 64
POSITIONS_AT_ONCE = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class NgramCount:
    """Exposures of an n-gram, and the number of shards that the selection takes something of."""

    count: int
    shards_searched: int


def ids_of(reader: IndexReader, text: str | None, token_ids: Sequence[int] | None) -> list[int]:
    """The n-gram's token ids: as given, or of the text as it stands. Raises QueryError for none, both, or foreign ids."""
    if (text is None) == (token_ids is None):
        raise QueryError("expected either text or token ids")
    ids = reader.tokenizer.encode(text).token_ids.tolist() if text is not None else list(token_ids or ())
    if not ids:
        raise QueryError("expected at least one token, found none")
    check_vocabulary(reader, ids)
    return ids


def needs_kernels(reader: IndexReader) -> bool:
    """Whether counting uses the compiled kernels: they are loaded already, or there are many shards."""
    return "numba" in sys.modules or len(reader.shards) > FEW_SHARDS


def count_of_ngram(reader: IndexReader, token_ids: Sequence[int], selection: Selection) -> NgramCount:
    """How often an n-gram occurs. A damaged shard is left out from then on. Raises SpanIndexError for an empty one."""
    return reader.retry_without_damaged(lambda: count_in_all_shards(reader, token_ids, selection))


def count_in_all_shards(reader: IndexReader, token_ids: Sequence[int], selection: Selection) -> NgramCount:
    """As `count_of_ngram`, as a part of another question, which asks again itself. Raises ShardDamage."""
    selected = reader.select(selection)
    count = _count_by_kernels if needs_kernels(reader) else _count_plainly
    return NgramCount(count=sum(count(item, token_ids) for item in selected), shards_searched=len(selected))


def _count_by_kernels(item: SelectedShard, token_ids: Sequence[int]) -> int:
    from indexer.spans.search import count, find

    whole = item.for_hits_of_length(len(token_ids))
    lo, hi = find(whole.spans, token_ids)
    return count(whole.spans, lo, hi, whole.filter)


def _count_plainly(item: SelectedShard, token_ids: Sequence[int]) -> int:
    whole = item.for_hits_of_length(len(token_ids))
    return count_without_kernels(whole.spans, token_ids, whole.filter)


def count_without_kernels(spans: SpanArrays, token_ids: Sequence[int], chosen: Filter) -> int:
    """What `spans.search.find` and `count` say together. Raises SpanIndexError for an empty n-gram."""
    if len(token_ids) == 0:
        raise SpanIndexError("find: expected at least one token, found none")
    if not all(0 <= token < spans.separator for token in token_ids):
        return 0
    lo, hi = _ranks(spans, token_ids)
    first = min(max(chosen.first, 0), spans.num_sequences)
    last = spans.num_sequences if chosen.last is None else min(max(chosen.last, first), spans.num_sequences)
    begin, end = int(spans.sequence_starts[first]), int(spans.sequence_starts[last])
    total = 0
    for rank in range(lo, hi, POSITIONS_AT_ONCE):
        positions = spans.suffix_array[rank : min(hi, rank + POSITIONS_AT_ONCE)]
        positions = positions[(positions >= begin) & (positions < end)]
        if chosen.passing is None:
            total += len(positions)
        else:
            ordinals = np.searchsorted(spans.sequence_starts, positions, side="right") - 1
            total += int(np.count_nonzero(chosen.passing[ordinals]))
    return total


def _ranks(spans: SpanArrays, token_ids: Sequence[int]) -> tuple[int, int]:
    """Suffix ranks [lo, hi) of an n-gram. As big-endian bytes, suffixes stand in the order of the suffix array."""
    big_endian = spans.tokens.dtype.newbyteorder(">")
    wanted = np.array(token_ids, big_endian).tobytes()

    def start_of_suffix(rank: int) -> bytes:
        position = int(spans.suffix_array[rank])
        return spans.tokens[position : position + len(token_ids)].astype(big_endian).tobytes()

    ranks = range(spans.num_tokens)
    lo = bisect_left(ranks, wanted, key=start_of_suffix)
    return lo, bisect_right(ranks, wanted, lo=lo, key=start_of_suffix)
