"""Trace: text → spans → exposures → documents. Plain functions over an `IndexReader`.

1. The text is tokenized with the run's tokenizer, once as it stands and once as if a space stood before it, so that the
   first word does not fail for its position. Spans are compared by their characters.
2. All maximal spans of at least `min_length` tokens that occur in the selected rows, with exact counts.
3. The rarest are selected: lowest sum of unigram log-probabilities, at most K = ceil(0.05 · tokens) of them (at least
   MIN_SELECTED). A span without a letter or digit takes no place. Spans are never merged into text that occurs nowhere.
4. Each selected span gets its first and last step, its data-parallel ranks, and its first hits with context and document.
5. Documents are ranked by how many tokens of the output they cover.

A hit is not a cause: a trace says where the text occurs in what was consumed, not why the model wrote it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from indexer.index_reader import IndexReader, SelectedShard
from indexer.selection import Selection
from indexer.spans.merge import MergedSpans, spans_over_shards
from indexer.spans.search import count, extent, find, ordinal_of, page
from indexer.tokenization import Encoded
from indexer.trace_input import variants_of
from indexer.trace_records import Hit, Span, Trace, TracedDocument
from train_hooks.export_format.errors import QueryError
from train_hooks.export_format.records import Segment

__all__ = ["MIN_LENGTH_DEFAULT", "TraceOptions", "count_ngram", "trace"]

MIN_LENGTH_DEFAULT = 8
MIN_SELECTED = 5
MAX_HITS = 100
RANKS_FROM_HITS = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceOptions:
    """min_length in tokens; max_spans None means K of the rule; num_hits and context_tokens a selected span."""

    min_length: int = MIN_LENGTH_DEFAULT
    selection: Selection = field(default_factory=Selection)
    max_spans: int | None = None
    num_hits: int = 5
    context_tokens: int = 24

    def __post_init__(self) -> None:
        for name, low, high in (
            ("min_length", 1, 10_000), ("num_hits", 0, MAX_HITS), ("context_tokens", 0, 512), ("max_spans", 0, 10_000),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise QueryError(f"{name}: expected {low} to {high}, found {value}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A maximal span before it is described: tokens [start, end) of `encoded`, characters of the text."""

    encoded: Encoded
    start: int
    end: int
    char_start: int
    char_end: int
    count: int
    ranks: tuple[tuple[int, int], ...]

    @property
    def token_ids(self) -> npt.NDArray[np.int64]:
        return self.encoded.token_ids[self.start : self.end]


def trace(
    reader: IndexReader,
    text: str | None = None,
    *,
    token_ids: Sequence[int] | None = None,
    options: TraceOptions | None = None,
) -> Trace:
    """Trace a text, or token ids of the run's tokenizer. Raises QueryError for empty or overlong input."""
    started = time.perf_counter()
    options = options or TraceOptions()
    text, variants = variants_of(reader, text, token_ids)
    encoded = variants[0]
    selected = reader.select(options.selection)
    found = _all_spans(selected, variants, text, options.min_length)
    chosen = _choose(reader, found, text, options, len(encoded.token_ids))
    spans = [
        _describe(reader, selected, span, text, options, rank=chosen.get(index)) for index, span in enumerate(found)
    ]
    return Trace(
        run_id=reader.info.run_id,
        generation=reader.generation.number,
        shards_total=len(reader.generation.shards),
        shards_searched=len(selected),
        shards_failed=len(reader.failed),
        failures=tuple(reader.failed),
        took_ms=round((time.perf_counter() - started) * 1e3, 3),
        truncated=any(span.hits_truncated for span in spans) or len(chosen) < len(found),
        min_length=options.min_length,
        selection=options.selection,
        text=text,
        num_tokens=len(encoded.token_ids),
        num_tokens_covered=_covered(encoded, spans),
        spans=tuple(spans),
        documents=_documents(spans),
    )


def _all_spans(
    selected: Sequence[SelectedShard], variants: Sequence[Encoded], text: str, min_length: int
) -> list[_Found]:
    """Maximal spans of all variants by characters; one that another one holds is dropped."""
    found: list[_Found] = []
    for encoded in variants:
        merged = _search(selected, encoded, min_length)
        for index in range(len(merged.start)):
            start, end = int(merged.start[index]), int(merged.end[index])
            found.append(
                _Found(
                    encoded=encoded,
                    start=start,
                    end=end,
                    char_start=int(encoded.char_starts[start]) if text else start,
                    char_end=int(encoded.char_ends[end - 1]) if text else end,
                    count=int(merged.count[index]),
                    ranks=tuple(
                        (int(lo), int(hi))
                        for lo, hi in zip(merged.shard_lo[index], merged.shard_hi[index], strict=True)
                    ),
                )
            )
    found.sort(key=lambda span: (span.char_start, -span.char_end))
    kept: list[_Found] = []
    furthest = -1
    for span in found:
        if span.char_end > furthest:
            kept.append(span)
            furthest = span.char_end
    return kept


def _rank_pairs(merged: MergedSpans, index: int) -> tuple[tuple[int, int], ...]:
    """Suffix ranks [lo, hi) of a span in each shard."""
    pairs = zip(merged.shard_lo[index].tolist(), merged.shard_hi[index].tolist(), strict=True)
    return tuple(pairs)


def _search(selected: Sequence[SelectedShard], encoded: Encoded, min_length: int) -> MergedSpans:
    return spans_over_shards(
        [item.shard.spans for item in selected], encoded.token_ids, min_length, [item.filter for item in selected]
    )


def _choose(
    reader: IndexReader, found: Sequence[_Found], text: str, options: TraceOptions, num_tokens: int
) -> dict[int, int]:
    """Index of each selected span → its place by rarity, from 0."""
    limit = max(MIN_SELECTED, math.ceil(0.05 * num_tokens)) if options.max_spans is None else options.max_spans
    candidates = [
        index
        for index, span in enumerate(found)
        if not text or any(character.isalnum() for character in text[span.char_start : span.char_end])
    ]
    candidates.sort(key=lambda index: (_log_probability(reader, found[index]), index))
    return {index: place for place, index in enumerate(candidates[:limit])}


def _log_probability(reader: IndexReader, span: _Found) -> float:
    counts = reader.unigrams
    return float(np.log(np.maximum(counts[span.token_ids], 0.5) / max(1, int(counts.sum()))).sum())


def _describe(
    reader: IndexReader,
    selected: Sequence[SelectedShard],
    span: _Found,
    text: str,
    options: TraceOptions,
    *,
    rank: int | None,
) -> Span:
    first, last = _steps(selected, span)
    hits = () if rank is None else _hits(reader, selected, span, options)
    return Span(
        start=span.start,
        end=span.end,
        char_start=span.char_start if text else None,
        char_end=span.char_end if text else None,
        text=text[span.char_start : span.char_end],
        token_ids=tuple(span.token_ids.tolist()),
        num_tokens=span.end - span.start,
        count=span.count,
        count_relation="eq",
        log_probability=round(_log_probability(reader, span), 3),
        rarity_rank=rank,
        first_step=first,
        last_step=last,
        dp_ranks=_dp_ranks(selected, span),
        hits=tuple(hits),
        hits_truncated=rank is not None and len(hits) < span.count,
    )


def _steps(selected: Sequence[SelectedShard], span: _Found) -> tuple[int, int]:
    steps: list[int] = []
    for item, (lo, hi) in zip(selected, span.ranks, strict=True):
        ends = extent(item.shard.spans, lo, hi, item.filter) if hi > lo else None
        if ends is not None:
            steps += [int(item.shard.steps[ends[0]]), int(item.shard.steps[ends[1]])]
    return min(steps), max(steps)


def _dp_ranks(selected: Sequence[SelectedShard], span: _Found) -> tuple[int, ...] | None:
    """The ranks that saw the span, or None where it has too many hits to look at each."""
    if span.count > RANKS_FROM_HITS:
        return None
    ranks: set[int] = set()
    for item, (lo, hi) in zip(selected, span.ranks, strict=True):
        positions = page(item.shard.spans, lo, hi, item.filter, limit=RANKS_FROM_HITS)
        ordinals, _ = ordinal_of(item.shard.spans, positions)
        ranks.update(int(dp_rank) for dp_rank in np.unique(item.shard.dp_ranks[ordinals]))
    return tuple(sorted(ranks))


def _hits(reader: IndexReader, selected: Sequence[SelectedShard], span: _Found, options: TraceOptions) -> list[Hit]:
    """The first hits by attempt, step, rank, micro-batch, slot and offset."""
    hits: list[Hit] = []
    for item, (lo, hi) in zip(selected, span.ranks, strict=True):
        wanted = options.num_hits - len(hits)
        if wanted <= 0:
            break
        positions = page(item.shard.spans, lo, hi, item.filter, limit=wanted)
        ordinals, offsets = ordinal_of(item.shard.spans, positions)
        for ordinal, offset in zip(ordinals.tolist(), offsets.tolist(), strict=True):
            hits.append(_hit(reader, item, ordinal, offset, span.end - span.start, options.context_tokens))
    return hits


def _hit(reader: IndexReader, item: SelectedShard, ordinal: int, offset: int, length: int, context_tokens: int) -> Hit:
    sequence = reader.sequence_at(item.shard, ordinal)
    end = offset + length
    touched = [
        segment for segment in sequence.segments if segment.start < end and offset < segment.start + segment.length
    ]
    before, after = "", ""
    if reader.info.tokenizer_file is not None:
        tokens = sequence.tokens
        pieces = [tokens[max(0, offset - context_tokens) : offset], tokens[end : end + context_tokens]]
        before, after = reader.tokenizer.decode_many(pieces)
    return Hit(
        address=sequence.address,
        offset=offset,
        segments=tuple(touched),
        document_token_offset=_document_offset(touched, offset),
        context_before=before,
        context_after=after,
    )


def _document_offset(touched: Sequence[Segment], offset: int) -> int | None:
    return touched[0].document_token_offset + offset - touched[0].start if touched else None


def _covered(encoded: Encoded, spans: Sequence[Span]) -> int:
    covered = np.zeros(len(encoded.token_ids), bool)
    for span in spans:
        if span.char_start is None or span.char_end is None:
            covered[span.start : span.end] = True
        else:
            covered |= (encoded.char_starts >= span.char_start) & (encoded.char_ends <= span.char_end)
    return int(covered.sum())


def _documents(spans: Sequence[Span]) -> tuple[TracedDocument, ...]:
    of_document: dict[tuple[str, str], set[int]] = {}
    for index, span in enumerate(spans):
        for hit in span.hits:
            for segment in hit.segments:
                of_document.setdefault((segment.source, segment.document_id), set()).add(index)
    documents = [
        TracedDocument(
            source=source,
            document_id=document_id,
            spans=tuple(sorted(indices)),
            num_tokens=sum(spans[index].num_tokens for index in indices),
        )
        for (source, document_id), indices in of_document.items()
    ]
    return tuple(sorted(documents, key=lambda d: (-d.num_tokens, d.source, d.document_id)))


def count_ngram(reader: IndexReader, token_ids: Sequence[int], selection: Selection) -> int:
    """How often a token n-gram occurs in the selected rows."""
    total = 0
    for item in reader.select(selection):
        lo, hi = find(item.shard.spans, token_ids)
        total += count(item.shard.spans, lo, hi, item.filter)
    return total
