"""What a search returns. `to_json` gives the same as plain data, which the command line, the API and the pages share."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from indexer.answers.coverage import Coverage
from indexer.answers.plain_data import plain_data
from indexer.selection.rows import Selection
from train_hooks.export_format.records import Segment, SequenceAddress

__all__ = ["FacetCount", "Facets", "SearchHit", "SearchResult", "Snippet"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Snippet:
    """A part of a segment's text: characters [start, start + len(text)). highlights: [start, end) in the segment's text."""

    text: str
    start: int
    highlights: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchHit:
    """A segment that matches. The segment is None where the sequence has none at this place, and is tokens [start, end).

    score: BM25, comparable over shards; None where hits are sorted by step. snippet: None where the run has no tokenizer.
    """

    address: SequenceAddress
    start: int
    end: int
    segment: Segment | None
    score: float | None
    snippet: Snippet | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FacetCount:
    """How many of the matching segments have this value."""

    value: str | int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Facets:
    """Matching segments by source and by data-parallel rank, most first; steps: in [edge i, edge i + 1) of step_edges.

    truncated: there are more sources or ranks than are counted here.
    """

    sources: tuple[FacetCount, ...]
    dp_ranks: tuple[FacetCount, ...]
    truncated: bool
    step_edges: tuple[int, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult(Coverage):
    """The answer to one search, with what it was asked of. count: matching segments, of which `hits` is one page.

    next_cursor: asks for the page after this one; None on the last one.
    """

    query: str
    sort: str
    selection: Selection
    count: int
    hits: tuple[SearchHit, ...]
    next_cursor: str | None
    facets: Facets | None

    def to_json(self) -> dict[str, Any]:
        """Plain data; sequence addresses are texts. What is hidden from the asker is not named."""
        document: dict[str, Any] = plain_data(dataclasses.replace(self, selection=Selection()))
        document["selection"] = self.selection.to_json()
        for hit, plain in zip(self.hits, document["hits"], strict=True):
            plain["global_step"] = hit.address.global_step
            plain["dp_rank"] = hit.address.dp_rank
            if plain["segment"] is not None:
                del plain["segment"]["loss"]  # it is in the catalog
        return document
