"""Where spans occur: steps, data-parallel ranks, hits with their context."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from indexer.answers.deadline import check_deadline
from indexer.reader import IndexReader, PackedSequence
from indexer.selection.rows import SelectedShard
from indexer.selection.visibility import EVERYTHING, Visibility
from indexer.spans.search import extent, histogram, ordinal_of, page
from indexer.storage.shard import Shard, ShardDamage
from indexer.trace.records import Hit
from indexer.trace.spans import FoundSpan
from train_hooks.export_format.records import Segment

__all__ = [
    "FoundPlace",
    "describe_places",
    "dp_ranks",
    "exposures",
    "hits_of",
    "places_of",
    "step_edges",
    "steps_of",
]

RANKS_FROM_HITS = 10_000
NUM_BINS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundPlace:
    """Where an n-gram stands: tokens from `offset` of a shard's sequence on; token_ids i64 [length]."""

    shard: Shard
    ordinal: int
    offset: int
    token_ids: npt.NDArray[np.int64]


def _searched(selected: Sequence[SelectedShard], span: FoundSpan) -> Iterator[tuple[SelectedShard, tuple[int, int]]]:
    """The shards where the span occurs, under the filter of its length, with its suffix ranks."""
    for item, (lo, hi) in zip(selected, span.ranks, strict=True):
        if hi > lo:
            yield item.for_hits_of_length(span.end - span.start), (lo, hi)


def steps_of(selected: Sequence[SelectedShard], span: FoundSpan) -> tuple[int, int]:
    """First and last step that saw the span."""
    steps: list[int] = []
    for item, (lo, hi) in _searched(selected, span):
        ends = extent(item.spans, lo, hi, item.filter)
        if ends is not None:
            steps += [int(item.unit_steps[ends[0]]), int(item.unit_steps[ends[1]])]
    return min(steps), max(steps)


def step_edges(selected: Sequence[SelectedShard]) -> tuple[int, ...]:
    """Edges of at most NUM_BINS equal bins over the steps that the selection takes; bin i is [edge i, edge i + 1)."""
    if not selected:
        return ()
    first = min(int(item.unit_steps[item.filter.first]) for item in selected)
    last = max(int(item.unit_steps[: item.filter.last][-1]) for item in selected)
    width = -(-(last - first + 1) // NUM_BINS)
    num_bins = -(-(last - first + 1) // width)
    return tuple(first + width * index for index in range(num_bins + 1))


def exposures(selected: Sequence[SelectedShard], span: FoundSpan, edges: Sequence[int]) -> tuple[int, ...]:
    """Exposures in each bin of steps."""
    counts = np.zeros(max(0, len(edges) - 1), np.int64)
    for item, (lo, hi) in _searched(selected, span):
        units = np.searchsorted(item.unit_steps, edges)
        counts += histogram(item.spans, lo, hi, units, item.filter)
    return tuple(counts.tolist())


def dp_ranks(selected: Sequence[SelectedShard], span: FoundSpan) -> tuple[int, ...] | None:
    """The ranks that saw the span, or None where it has too many hits to look at each."""
    if span.count > RANKS_FROM_HITS:
        return None
    ranks: set[int] = set()
    for item, (lo, hi) in _searched(selected, span):
        positions = page(item.spans, lo, hi, item.filter, limit=RANKS_FROM_HITS)
        ordinals, _ = ordinal_of(item.shard.spans, positions)
        ranks.update(np.unique(item.shard.dp_ranks[ordinals]).tolist())
    return tuple(sorted(ranks))


def hits_of(
    reader: IndexReader,
    selected: Sequence[SelectedShard],
    spans: Sequence[FoundSpan],
    num_hits: int,
    context_tokens: int,
    visibility: Visibility = EVERYTHING,
) -> list[list[Hit]]:
    """For each span its first hits by attempt, step, rank, micro-batch, slot and offset. Raises as `describe_places`."""
    places = [list(_places(selected, span, num_hits)) for span in spans]
    hits = iter(describe_places(reader, list(chain.from_iterable(places)), context_tokens, visibility))
    return [[next(hits) for _ in of_span] for of_span in places]


def _places(selected: Sequence[SelectedShard], span: FoundSpan, num_hits: int) -> Iterator[FoundPlace]:
    wanted = num_hits
    for item, (lo, hi) in _searched(selected, span):
        if wanted > 0:
            positions = page(item.spans, lo, hi, item.filter, limit=wanted)
            wanted -= len(positions)
            yield from places_of(item.shard, positions, span.token_ids)


def places_of(shard: Shard, positions: npt.NDArray[np.int64], token_ids: npt.NDArray[np.int64]) -> list[FoundPlace]:
    """Where n-grams stand, by their token positions in a shard."""
    ordinals, offsets = ordinal_of(shard.spans, positions)
    return [
        FoundPlace(shard=shard, ordinal=ordinal, offset=offset, token_ids=token_ids)
        for ordinal, offset in zip(ordinals.tolist(), offsets.tolist(), strict=True)
    ]


def describe_places(
    reader: IndexReader, places: Sequence[FoundPlace], context_tokens: int, visibility: Visibility = EVERYTHING
) -> list[Hit]:
    """Hits with their context, as far as it is visible, and segments; all texts are decoded in one call.

    Raises ShardDamage for a sequence that does not match its leaf, or does not hold the tokens.
    """
    sequences, contexts = [], []
    for place in places:
        check_deadline()
        sequence = reader.sequence_at(place.shard, place.ordinal)
        begin, end = place.offset, place.offset + len(place.token_ids)
        if not np.array_equal(sequence.tokens[begin:end], place.token_ids):
            name = place.shard.info.name
            raise ShardDamage(name, f"{place.shard.directory}: the suffix array points elsewhere")
        first, last = _context(reader, sequence, begin, end, context_tokens, visibility)
        sequences.append(sequence)
        contexts += [sequence.tokens[first:begin], sequence.tokens[end:last]]
    has_text = reader.info.tokenizer_file is not None
    texts = iter(reader.tokenizer.decode_many(contexts) if has_text else [""] * len(contexts))
    return [
        _hit(sequence, place.offset, len(place.token_ids), next(texts), next(texts))
        for sequence, place in zip(sequences, places, strict=True)
    ]


def _context(
    reader: IndexReader, sequence: PackedSequence, begin: int, end: int, context_tokens: int, visibility: Visibility
) -> tuple[int, int]:
    """Begin and end of the tokens around [begin, end), as far as they are visible without a hole."""
    first, last = max(0, begin - context_tokens), min(len(sequence.tokens), end + context_tokens)
    hidden = np.flatnonzero(~reader.visible_tokens(sequence, visibility))
    if len(hidden):
        before, after = hidden[hidden < begin], hidden[hidden >= end]
        first = max(first, int(before[-1]) + 1) if len(before) else first
        last = min(last, int(after[0])) if len(after) else last
    return first, last


def _hit(sequence: PackedSequence, offset: int, length: int, before: str, after: str) -> Hit:
    end = offset + length
    touched = tuple(
        segment for segment in sequence.segments if segment.start < end and offset < segment.start + segment.length
    )
    return Hit(
        address=sequence.address,
        offset=offset,
        num_tokens_before=offset,
        num_tokens_after=len(sequence.tokens) - end,
        segments=touched,
        document_token_offset=_offset_in_document(touched[0], offset) if touched else None,
        context_before=before,
        context_after=after,
    )


def _offset_in_document(segment: Segment, offset: int) -> int | None:
    """Where token `offset` of a sequence stands in the document of its segment; None where the export does not know that."""
    known = segment.document_token_offset >= 0
    return segment.document_token_offset + offset - segment.start if known else None
