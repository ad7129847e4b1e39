"""How much of a sequence had been seen: the share of its tokens in a 50-gram that an earlier step was trained on.

Rules:

1. A token counts if it lies in 50 tokens, within its sequence, that also stand in one sequence of an *earlier* step: a
   smaller step on the lineage of the row's own attempt, whose update was applied. The same step does not count.
2. Exact, and a union over the earlier steps: it does not matter how they are cut into shards.
3. Within a shard the suffix array answers: suffixes that share 50 tokens stand side by side.
4. In the shards before, only what an anchor points to is looked up, and only until it is found; see `anchors`.
5. A row's share is worked out once, when its step is first indexed, from the steps that are indexed by then. Earlier steps
   of a lineage are complete before later ones exist, so that following a run gives what one indexing at its end gives.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.jit import jit, prefetch
from indexer.spans.arrays import SpanArrays
from indexer.spans.filters import Filter
from indexer.spans.group import maximal_spans
from indexer.spans.kernels.packing import ordinal_at
from indexer.spans.prepare import prepare
from indexer.statistics.anchors import SEEN_LENGTH, WINDOW, anchors, in_bloom_filter

__all__ = ["EarlierShard", "seen_shares"]

QUERY_TOKENS = 1 << 20
AHEAD = 16
"""Suffixes whose text is asked for before it is compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EarlierShard:
    """A shard before: its anchors' Bloom filter, and which of its sequences are applied steps of the lineage."""

    spans: SpanArrays
    anchors: NDArray[np.uint64]
    chosen: Filter


def seen_shares(
    spans: SpanArrays,
    steps: NDArray[np.int64],
    applied: NDArray[np.bool_],
    first: int,
    earlier: Iterable[EarlierShard],
) -> NDArray[np.float32]:
    """Share of seen tokens of each sequence of a shard from ordinal `first` on, f32 [num_sequences - first].

    steps i64 [num_sequences]: step of each sequence, ascending; applied: whether its update was.
    """
    covered = np.zeros(spans.num_tokens, np.uint8)
    if (np.diff(spans.sequence_starts) > SEEN_LENGTH).any():
        step_firsts = spans.sequence_starts[np.searchsorted(steps, steps)]
        _cover_own(
            spans.tokens, spans.suffix_array, spans.fingerprints, spans.sequence_starts, step_firsts,
            np.ascontiguousarray(applied).view(np.uint8), covered,
        )  # fmt: skip
        _cover_from(spans, first, earlier, covered)
    return _shares(spans.sequence_starts, covered, first)


def _cover_from(spans: SpanArrays, first: int, earlier: Iterable[EarlierShard], covered: NDArray[np.uint8]) -> None:
    """Mark what stands in the shards before."""
    tokens, starts = spans.tokens, spans.sequence_starts
    hashes, positions = anchors(tokens, starts[first:])  # those that hold a separator find nothing
    order = np.argsort(hashes)
    hashes, positions = hashes[order], positions[order]
    for other in earlier:
        hits = np.sort(positions[in_bloom_filter(other.anchors, hashes)])
        regions = np.empty((len(hits), 2), np.int64)
        num_regions = _regions(starts, covered, hits, regions)
        prepared = prepare(other.spans, other.chosen)
        for query, places in _queries(tokens, spans.separator, regions[:num_regions]):
            found = maximal_spans(other.spans, query, SEEN_LENGTH, prepared)
            for start, end in zip(found.start.tolist(), found.end.tolist(), strict=True):
                covered[places[start] : places[start] + end - start] = 1


def _queries(
    tokens: NDArray[Any], separator: int, regions: NDArray[np.int64]
) -> Iterator[tuple[NDArray[Any], NDArray[np.int64]]]:
    """Regions side by side with separators between, about QUERY_TOKENS at a time, and the position of each token."""
    if not len(regions):
        return
    ends = np.cumsum(regions[:, 1] - regions[:, 0] + 1)
    cuts = np.searchsorted(ends, np.arange(QUERY_TOKENS, int(ends[-1]), QUERY_TOKENS))
    for batch in np.split(regions, cuts):
        if len(batch):
            places = np.concatenate([np.arange(begin, end + 1) for begin, end in batch.tolist()])
            query = np.array(tokens[places])
            query[np.cumsum(batch[:, 1] - batch[:, 0] + 1) - 1] = separator
            yield query, places


@jit
def _shares_start(tokens: NDArray[Any], first: int, second: int, length: int, separator: int) -> bool:
    """Whether both positions begin the same `length` tokens, none of them a separator."""
    if max(first, second) + length > len(tokens):
        return False
    for k in range(length):
        token = tokens[first + k]
        if token != tokens[second + k] or token == separator:
            return False
    return True


@jit
def _cover_own(
    tokens: NDArray[Any],
    suffix_array: NDArray[np.int32],
    fingerprints: NDArray[np.uint16],
    starts: NDArray[np.int64],
    step_firsts: NDArray[np.int64],
    applied: NDArray[np.uint8],
    covered: NDArray[np.uint8],
) -> None:
    """Mark the 50-grams that an earlier step of the same shard holds. step_firsts: where the step of an ordinal begins."""
    num, separator = len(suffix_array), tokens[len(tokens) - 1]
    address = tokens.ctypes.data
    rank = 0
    while rank < num:
        end, shared = rank + 1, True
        while shared and end < num:
            ahead = end + AHEAD
            if ahead < num and fingerprints[ahead] == fingerprints[ahead - 1]:
                prefetch(address + tokens.itemsize * np.int64(suffix_array[ahead]))
            shared = fingerprints[end] == fingerprints[end - 1] and _shares_start(
                tokens, int(suffix_array[end - 1]), int(suffix_array[end]), SEEN_LENGTH, separator
            )
            end += shared
        if end - rank > 1:
            earliest = len(tokens)
            for member in range(rank, end):
                position = int(suffix_array[member])
                if position < earliest and applied[ordinal_at(starts, position)]:
                    earliest = position
            for member in range(rank, end):
                position = int(suffix_array[member])
                if earliest < step_firsts[ordinal_at(starts, position)]:
                    covered[position] = 1
        rank = end
    reach = 0
    for position in range(num):
        if covered[position]:
            reach = position + SEEN_LENGTH
        covered[position] = position < reach


@jit
def _regions(
    starts: NDArray[np.int64], covered: NDArray[np.uint8], hits: NDArray[np.int64], regions: NDArray[np.int64]
) -> int:
    """Write the stretches [begin, end) that hold every 50-gram around the anchors at `hits`; returns how many.

    An anchor around which all is marked already is left out. Stretches of one sequence that touch are one.
    """
    count = 0
    for position in hits:
        ordinal = ordinal_at(starts, position)
        begin = max(starts[ordinal], position - WINDOW + 1)
        end = min(starts[ordinal + 1] - 1, position + SEEN_LENGTH)
        marked = True
        for k in range(begin, end):
            marked &= covered[k] != 0
        if marked:
            continue
        if count and regions[count - 1, 1] >= begin and regions[count - 1, 0] >= starts[ordinal]:
            regions[count - 1, 1] = end
        else:
            regions[count, 0], regions[count, 1] = begin, end
            count += 1
    return count


@jit
def _shares(starts: NDArray[np.int64], covered: NDArray[np.uint8], first: int) -> NDArray[np.float32]:
    shares = np.zeros(len(starts) - 1 - first, np.float32)
    for ordinal in range(first, len(starts) - 1):
        length, inside = starts[ordinal + 1] - 1 - starts[ordinal], 0
        for k in range(starts[ordinal], starts[ordinal + 1] - 1):
            inside += covered[k]
        if length > 0:
            shares[ordinal - first] = inside / length
    return shares
