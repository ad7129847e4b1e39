"""The span index: does a token sequence of any length occur in the training data, how often, and where exactly."""

from indexer.spans.arrays import SpanArrays, SpanIndexError, open_span_arrays
from indexer.spans.build import build_span_arrays, max_tokens
from indexer.spans.filters import Filter, PreparedFilter, prepare
from indexer.spans.merge import MergedSpans, merge_spans, spans_over_shards
from indexer.spans.search import (
    Spans,
    count,
    extent,
    find,
    histogram,
    longest_match,
    maximal_spans,
    ordinal_of,
    page,
)

__all__ = [
    "Filter",
    "MergedSpans",
    "PreparedFilter",
    "SpanArrays",
    "SpanIndexError",
    "Spans",
    "build_span_arrays",
    "count",
    "extent",
    "find",
    "histogram",
    "longest_match",
    "max_tokens",
    "maximal_spans",
    "merge_spans",
    "open_span_arrays",
    "ordinal_of",
    "page",
    "prepare",
    "spans_over_shards",
]
