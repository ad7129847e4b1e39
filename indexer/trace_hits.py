"""Where spans occur: steps, data-parallel ranks, hits with their context."""

from collections.abc import Iterator, Sequence

import numpy as np

from indexer.index_reader import IndexReader, PackedSequence
from indexer.selection import SelectedShard
from indexer.shard import ShardDamage
from indexer.spans.search import extent, histogram, ordinal_of, page
from indexer.trace_records import Hit
from indexer.trace_spans import FoundSpan

__all__ = ["dp_ranks", "exposures", "hits_of", "step_edges", "steps_of"]

RANKS_FROM_HITS = 10_000
NUM_BINS = 24


def steps_of(selected: Sequence[SelectedShard], span: FoundSpan) -> tuple[int, int]:
    """First and last step that saw the span."""
    steps: list[int] = []
    for item, (lo, hi) in zip(selected, span.ranks, strict=True):
        ends = extent(item.spans, lo, hi, item.filter) if hi > lo else None
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
    for item, (lo, hi) in zip(selected, span.ranks, strict=True):
        if hi > lo:
            units = np.searchsorted(item.unit_steps, edges)
            counts += histogram(item.spans, lo, hi, units, item.filter)
    return tuple(counts.tolist())


def dp_ranks(selected: Sequence[SelectedShard], span: FoundSpan) -> tuple[int, ...] | None:
    """The ranks that saw the span, or None where it has too many hits to look at each."""
    if span.count > RANKS_FROM_HITS:
        return None
    ranks: set[int] = set()
    for item, (lo, hi) in zip(selected, span.ranks, strict=True):
        if hi > lo:
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
) -> list[list[Hit]]:
    """For each span its first hits by attempt, step, rank, micro-batch, slot and offset.

    Raises ShardDamage for a sequence that does not match its leaf, or does not hold the span.
    """
    places = [list(_places(reader, selected, span, num_hits)) for span in spans]
    contexts = iter(_contexts(reader, spans, places, context_tokens))
    return [
        [_hit(sequence, offset, span.end - span.start, next(contexts), next(contexts)) for sequence, offset in of_span]
        for span, of_span in zip(spans, places, strict=True)
    ]


def _places(
    reader: IndexReader, selected: Sequence[SelectedShard], span: FoundSpan, num_hits: int
) -> Iterator[tuple[PackedSequence, int]]:
    wanted = num_hits
    for item, (lo, hi) in zip(selected, span.ranks, strict=True):
        if hi > lo and wanted > 0:
            positions = page(item.spans, lo, hi, item.filter, limit=wanted)
            ordinals, offsets = ordinal_of(item.shard.spans, positions)
            wanted -= len(positions)
            for ordinal, offset in zip(ordinals.tolist(), offsets.tolist(), strict=True):
                sequence = reader.sequence_at(item.shard, ordinal)
                if not np.array_equal(sequence.tokens[offset : offset + len(span.token_ids)], span.token_ids):
                    raise ShardDamage(
                        item.shard.info.name, f"{item.shard.directory}: the suffix array points elsewhere"
                    )
                yield sequence, offset


def _contexts(
    reader: IndexReader,
    spans: Sequence[FoundSpan],
    places: Sequence[Sequence[tuple[PackedSequence, int]]],
    context_tokens: int,
) -> list[str]:
    """The text before and after each hit, all decoded in one call."""
    pieces = []
    for span, of_span in zip(spans, places, strict=True):
        for sequence, offset in of_span:
            end = offset + span.end - span.start
            pieces.append(sequence.tokens[max(0, offset - context_tokens) : offset])
            pieces.append(sequence.tokens[end : end + context_tokens])
    return reader.tokenizer.decode_many(pieces) if reader.info.tokenizer_file is not None else [""] * len(pieces)


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
        document_token_offset=touched[0].document_token_offset + offset - touched[0].start if touched else None,
        context_before=before,
        context_after=after,
    )
