"""What an index knows to be missing: rows that the trainer said it did not export, and steps between those that are there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from indexer.reader import IndexReader

__all__ = ["Completeness", "completeness"]

_GAPS = (
    "SELECT attempt, global_step, dp_rank, num_rows, reason FROM gaps ORDER BY attempt, global_step, dp_rank LIMIT ?"
)
_STEPS = """
SELECT count(DISTINCT global_step) AS num_steps, min(global_step) AS first_step, max(global_step) AS last_step,
       count(*) FILTER (status <> 'applied') AS num_without_update
FROM steps WHERE canonical
"""
_ALL = "SELECT count(*) AS num_rows, count(*) FILTER (NOT canonical) AS num_superseded FROM steps"


@dataclass(frozen=True, kw_only=True, slots=True)
class Completeness:
    """gaps: the first ones, as rows of the catalog's view `gaps`. Steps are canonical ones, but for num_superseded.

    num_missing: canonical steps up to the last one of which nothing is indexed.
    """

    gaps: Sequence[dict[str, Any]]
    num_gaps: int
    num_steps: int
    num_missing: int
    num_without_update: int
    num_superseded: int


def completeness(reader: IndexReader, max_gaps: int) -> Completeness:
    """What is missing in the reader's generation; at most `max_gaps` gaps are listed."""
    (steps,) = reader.sql(_STEPS)
    (every,) = reader.sql(_ALL)
    (gaps,) = reader.sql("SELECT count(*) AS num_gaps FROM gaps")
    return Completeness(
        gaps=reader.sql(_GAPS, [max_gaps]),
        num_gaps=gaps["num_gaps"],
        num_steps=steps["num_steps"],
        num_missing=(steps["last_step"] or 0) - steps["num_steps"],
        num_without_update=steps["num_without_update"],
        num_superseded=every["num_superseded"],
    )
