"""Trace: text → spans → exposures → documents. Plain functions over an `IndexReader`.

1. The text is tokenized with the run's tokenizer, once as it stands and once as if a space stood before it; spans are
   mended where their first word has other tokens in the middle of a text than at its start (`trace_spans`).
2. All maximal spans of at least `min_length` tokens that occur in the selected rows, with exact counts.
3. The rarest are selected: lowest sum of unigram log-probabilities, at most K = ceil(0.05 · tokens) of them (at least
   MIN_SELECTED). A span without a letter or digit takes no place. Spans are never merged into text that occurs nowhere.
4. Each span gets its first and last step and its data-parallel ranks, each selected one its first hits with context and
   document (`trace_hits`). A hit's sequence is hashed against its leaf before it is shown.
5. Documents are ranked by how many tokens of the output they cover, then by BM25 relevance to prompt and output; spans
   that a packed-sequence cut divided are named as joined (`trace_documents`).

A hit is not a cause: a trace says where the text occurs in what was consumed, not why the model wrote it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from indexer.answers.coverage import CountRelation, coverage_of
from indexer.answers.deadline import check_deadline
from indexer.limits import MAX_HITS, MAX_SPANS, MIN_LENGTH_DEFAULT
from indexer.reader import IndexReader
from indexer.selection.rows import SelectedShard, Selection
from indexer.tokenizer.tokenizer import Encoded
from indexer.trace.documents import join_spans, rank_documents
from indexer.trace.hits import dp_ranks, exposures, hits_of, step_edges, steps_of
from indexer.trace.input import variants_of
from indexer.trace.records import Hit, Span, Trace
from indexer.trace.spans import FoundSpan, find_spans, log_probability, rarest_spans
from train_hooks.export_format.errors import QueryError

__all__ = ["TraceOptions", "trace"]

MIN_SELECTED = 5


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
            ("min_length", 1, 10_000), ("num_hits", 0, MAX_HITS), ("context_tokens", 0, 512), ("max_spans", 0, MAX_SPANS),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise QueryError(f"{name}: expected {low} to {high}, found {value}")

    def num_selected(self, num_tokens: int) -> int:
        """K, for an output of so many tokens."""
        return max(MIN_SELECTED, math.ceil(0.05 * num_tokens)) if self.max_spans is None else self.max_spans


def trace(
    reader: IndexReader,
    text: str | None = None,
    *,
    token_ids: Sequence[int] | None = None,
    prompt: str = "",
    options: TraceOptions | None = None,
) -> Trace:
    """Trace a text, or token ids of the run's tokenizer; `prompt` counts for the relevance of documents alone.

    A shard that turns out to be damaged is left out and named; the others answer. Raises QueryError for empty or overlong
    input, ShardDamage where no shard is left.
    """
    started = time.perf_counter()
    chosen = options or TraceOptions()
    return reader.retry_without_damaged(lambda: _trace(reader, text, token_ids, prompt, chosen, started))


def _trace(
    reader: IndexReader,
    text: str | None,
    token_ids: Sequence[int] | None,
    prompt: str,
    options: TraceOptions,
    started: float,
) -> Trace:
    text, variants = variants_of(reader, text, token_ids)
    encoded = variants[0]
    selected = reader.select(options.selection)
    found = find_spans(reader, selected, variants, text, options.min_length)
    visibility = reader.visible_under(options.selection.visibility)
    log_probabilities = reader.log_probabilities(visibility)
    chosen = rarest_spans(log_probabilities, found, text, options.num_selected(len(encoded.token_ids)))
    shown = [found[index] for index in chosen]
    listed = hits_of(reader, selected, shown, options.num_hits, options.context_tokens, visibility)
    hits = dict(zip(chosen, listed, strict=True))
    edges = step_edges(selected)
    relation: CountRelation = "gte" if reader.failed else "eq"
    spans = [
        _describe(
            selected, span, text, encoded, chosen.get(index), hits.get(index, []), edges, log_probabilities, relation
        )
        for index, span in enumerate(found)
    ]
    query_ids = encoded.token_ids
    if prompt:
        query_ids = np.concatenate([query_ids, reader.tokenizer.encode(prompt).token_ids])
    truncated = any(span.hits_truncated for span in spans) or len(chosen) < len(found)
    return Trace(
        min_length=options.min_length,
        selection=options.selection,
        text=text,
        num_tokens=len(encoded.token_ids),
        num_tokens_covered=_covered(encoded, spans),
        step_edges=edges,
        spans=tuple(spans),
        joined=join_spans(spans),
        documents=rank_documents(reader, spans, query_ids, visibility),
        **coverage_of(reader, shards_searched=len(selected), truncated=truncated, started_s=started).fields(),
    )


def _describe(
    selected: Sequence[SelectedShard],
    span: FoundSpan,
    text: str,
    encoded: Encoded,
    rank: int | None,
    hits: Sequence[Hit],
    edges: Sequence[int],
    log_probabilities: npt.NDArray[np.float64],
    count_relation: CountRelation,
) -> Span:
    check_deadline()
    first, last = steps_of(selected, span)
    start, end = _main_tokens(span, encoded) if text else (span.start, span.end)
    return Span(
        start=start,
        end=end,
        char_start=span.char_start if text else None,
        char_end=span.char_end if text else None,
        text=text[span.char_start : span.char_end],
        token_ids=tuple(span.token_ids.tolist()),
        num_tokens=span.end - span.start,
        count=span.count,
        count_relation=count_relation,
        log_probability=round(log_probability(log_probabilities, span.token_ids), 3),
        rarity_rank=rank,
        first_step=first,
        last_step=last,
        dp_ranks=dp_ranks(selected, span),
        exposures=() if rank is None else exposures(selected, span, edges),
        hits=tuple(hits),
        hits_truncated=rank is not None and len(hits) < span.count,
    )


def _main_tokens(span: FoundSpan, encoded: Encoded) -> tuple[int, int]:
    """The span's place in the text as it was tokenized first; a span of other tokens covers the same characters."""
    if span.encoded is encoded:
        return span.start, span.end
    start = int(np.searchsorted(encoded.char_ends, span.char_start, side="right"))
    return start, int(np.searchsorted(encoded.char_starts, span.char_end, side="left"))


def _covered(encoded: Encoded, spans: Sequence[Span]) -> int:
    covered = np.zeros(len(encoded.token_ids), bool)
    for span in spans:
        if span.char_start is None or span.char_end is None:
            covered[span.start : span.end] = True
        else:
            covered |= (encoded.char_starts >= span.char_start) & (encoded.char_ends <= span.char_end)
    return int(covered.sum())
