"""Bounds and defaults of questions and of building, in one place. It imports nothing, so that help pages come at once."""

from typing import Literal

__all__ = [
    "DEFAULT_SHARD_TOKENS",
    "MAX_HITS",
    "MAX_LIMIT",
    "MAX_SPANS",
    "MIN_LENGTH_DEFAULT",
    "Sort",
]

MIN_LENGTH_DEFAULT = 8
"""Tokens of the shortest span that a trace looks for."""
MAX_HITS, MAX_SPANS = 100, 10_000
"""Hits that a trace lists for a span, and spans that it describes."""
MAX_LIMIT = 1000
"""Search hits, or exposures of a document, on a page."""
DEFAULT_SHARD_TOKENS = 64_000_000
"""Tokens of a shard, at most."""

Sort = Literal["relevance", "step", "step_desc"]
"""Order of a search's hits: best first, or by first or last step."""
