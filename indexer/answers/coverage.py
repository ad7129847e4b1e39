"""What an answer was asked of, and whether anything is missing from it."""

import time
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from indexer.reader import IndexReader

__all__ = ["CountRelation", "Coverage", "coverage_of"]

CountRelation = Literal["eq", "gte"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """The index that answered, and how much of it. Records of answers inherit these fields.

    shards_searched: shards that the selection takes something of. failures: the damaged shards, which were left out, and why.
    count_relation: `gte` where a shard failed, so that counts may be too small. truncated: more was found than is listed.
    """

    run_id: str
    generation: int
    shards_total: int
    shards_searched: int
    shards_failed: int
    failures: tuple[str, ...]
    count_relation: CountRelation
    truncated: bool
    took_ms: float

    def fields(self) -> dict[str, Any]:
        """The fields by name, for the constructor of a record that inherits them."""
        return {item.name: getattr(self, item.name) for item in fields(Coverage)}


def coverage_of(reader: "IndexReader", *, shards_searched: int, truncated: bool, started_s: float) -> Coverage:
    """The coverage of an answer that is complete now. started_s: `time.perf_counter()` when it was asked for."""
    return Coverage(
        run_id=reader.info.run_id,
        generation=reader.generation.number,
        shards_total=len(reader.generation.shards),
        shards_searched=shards_searched,
        shards_failed=len(reader.failed),
        failures=tuple(reader.failed),
        count_relation="gte" if reader.failed else "eq",
        truncated=truncated,
        took_ms=round((time.perf_counter() - started_s) * 1e3, 3),
    )
