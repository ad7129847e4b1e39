"""Facets of a search: how its matching segments spread over sources, data-parallel ranks and steps."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from indexer.search.records import FacetCount, Facets

__all__ = ["facets_of", "step_edges", "wanted_facets"]

NUM_BINS = 24
MAX_VALUES = 1000


def step_edges(first: int, last: int) -> tuple[int, ...]:
    """Edges of at most NUM_BINS equal bins over the steps first to last; bin i is [edge i, edge i + 1)."""
    width = -(-(last - first + 1) // NUM_BINS)
    return tuple(range(first, last + width + 1, width))


def wanted_facets(edges: Sequence[int]) -> dict[str, Any]:
    """What the engine is asked for in each shard."""
    width = edges[1] - edges[0]
    steps = {"field": "global_step", "interval": width, "offset": edges[0] % width, "min_doc_count": 1}
    return {
        "sources": {"terms": {"field": "source", "size": MAX_VALUES}},
        "dp_ranks": {"terms": {"field": "dp_rank", "size": MAX_VALUES}},
        "steps": {"histogram": steps},
    }


def facets_of(found: Sequence[Mapping[str, Any]], edges: Sequence[int]) -> Facets:
    """The shards' facets added up."""
    sources: Counter[str] = Counter()
    ranks: Counter[int] = Counter()
    steps = [0] * max(0, len(edges) - 1)
    left_off = 0
    for shard in found:
        for bucket in shard["sources"]["buckets"]:
            sources[bucket["key"]] += bucket["doc_count"]
        for bucket in shard["dp_ranks"]["buckets"]:
            ranks[int(bucket["key"])] += bucket["doc_count"]
        for bucket in shard["steps"]["buckets"]:
            steps[(int(bucket["key"]) - edges[0]) // (edges[1] - edges[0])] += bucket["doc_count"]
        left_off += shard["sources"]["sum_other_doc_count"] + shard["dp_ranks"]["sum_other_doc_count"]
    return Facets(
        sources=_counts(sources)[:MAX_VALUES],
        dp_ranks=_counts(ranks)[:MAX_VALUES],
        truncated=bool(left_off) or max(len(sources), len(ranks)) > MAX_VALUES,
        step_edges=tuple(edges),
        steps=tuple(steps),
    )


def _counts(counts: Mapping[Any, int]) -> tuple[FacetCount, ...]:
    return tuple(
        FacetCount(value=value, count=count)
        for value, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    )
