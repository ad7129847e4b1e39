"""The public surface, and what importing it costs."""

import subprocess
import sys
from importlib import import_module

import pytest

PUBLIC = {
    "arrays": ["BLOCK", "GRAM", "RANGE", "SUPERBLOCK", "SpanArrays", "SpanIndexError", "open_span_arrays"],
    "build": ["build_span_arrays", "max_tokens"],
    "filters": ["Filter"],
    "group": ["Member", "SpanGroup", "Spans", "maximal_spans", "span_group", "spans_of_group"],
    "prepare": ["PreparedFilter", "filter_row", "prepare"],
    "search": [
        *("AnyFilter", "Order", "Query", "count", "extent", "find", "histogram", "longest_match"),
        *("ordinal_of", "page"),
    ],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module: str) -> None:
    assert import_module(f"indexer.spans.{module}").__all__ == PUBLIC[module]


@pytest.mark.parametrize("module", ["arrays", "filters", "reference"])
def test_no_numba_where_nothing_is_searched(module: str) -> None:
    code = f"import sys; sys.modules['numba'] = None; import indexer.spans.{module}"
    subprocess.run([sys.executable, "-c", code], check=True)
