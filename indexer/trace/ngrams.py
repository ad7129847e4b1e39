"""A token n-gram in the selected rows: how often, and every place of it page by page, without holding all of them.

What follows is exact, and reads the span index alone. `units_of_ngram` says which stretches of a shard hold an n-gram, for
boolean queries (`indexer.search.plan`).

Places are ordered by attempt, step, rank, micro-batch, slot and offset: by shard, and by token position in the shard. A page
ends with a place, and the next one begins after it, on the same generation.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from indexer.spans.arrays import SpanArrays
from indexer.spans.filters import Filter
from indexer.spans.search import count, find, histogram, page
from indexer.storage.shard import SegmentUnits
from indexer.trace.hits import FoundPlace, describe_places, places_of
from indexer.trace.records import Hit
from train_hooks.export_format.errors import QueryError

__all__ = [
    "NgramHits",
    "PageEnd",
    "counts_by_shard",
    "hit_of_shard",
    "hits_of_ngram",
    "units_of_ngram",
]

MAX_PAGE = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class PageEnd:
    """Where a page ended: a token position of a shard, by the shard's name."""

    shard: str
    position: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NgramHits:
    """A page of hits; `last` is None where no more follow."""

    hits: tuple[Hit, ...]
    last: PageEnd | None
    shards_searched: int


def hits_of_ngram(
    reader: IndexReader,
    token_ids: Sequence[int],
    selection: Selection,
    *,
    after: PageEnd | None = None,
    limit: int = 100,
    context_tokens: int = 24,
) -> NgramHits:
    """The `limit` places after a place, each checked against its leaf.

    A shard that turns out to be damaged is left out from then on. Raises QueryError for a limit out of 1 … MAX_PAGE.
    """
    if not 1 <= limit <= MAX_PAGE:
        raise QueryError(f"limit: expected 1 to {MAX_PAGE}, found {limit}")
    return reader.retry_without_damaged(lambda: _hits(reader, token_ids, selection, after, limit, context_tokens))


def _hits(
    reader: IndexReader,
    token_ids: Sequence[int],
    selection: Selection,
    after: PageEnd | None,
    limit: int,
    context_tokens: int,
) -> NgramHits:
    ids, visibility = np.asarray(token_ids), reader.visible_under(selection.visibility)
    places: list[tuple[PageEnd, FoundPlace]] = []
    selected = reader.select(selection)
    for item in selected:
        name, whole = item.shard.info.name, item.for_hits_of_length(len(ids))
        if after is not None and name < after.shard:
            continue
        lo, hi = find(whole.spans, ids)
        begin = after.position if after is not None and name == after.shard else None
        positions = page(whole.spans, lo, hi, whole.filter, after=begin, limit=limit + 1 - len(places))
        found = places_of(item.shard, positions, ids)
        places += zip([PageEnd(shard=name, position=at) for at in positions.tolist()], found, strict=True)
        if len(places) > limit:
            break
    last = places[limit - 1][0] if len(places) > limit else None
    hits = describe_places(reader, [place for _, place in places[:limit]], context_tokens, visibility)
    return NgramHits(hits=tuple(hits), last=last, shards_searched=len(selected))


def units_of_ngram(
    spans: SpanArrays, units: SegmentUnits, token_ids: Sequence[int], begin: int, end: int
) -> npt.NDArray[np.int64]:
    """Those units of the sequences [begin, end) that hold an n-gram from its first token to its last: ascending, i64 [k].

    No hit is held where there are more hits than units: they are counted by unit.
    """
    lo, hi = find(spans, token_ids)
    starts, length = units.starts, len(token_ids)
    if hi - lo < len(starts):
        positions = page(spans, lo, hi, Filter(first=begin, last=end), limit=hi - lo)
        found = np.searchsorted(starts, positions, side="right") - 1
        return np.unique(found[positions + length <= starts[found + 1]])
    edges = np.empty(2 * len(starts) - 1, np.int64)  # where each unit begins, and where the last hit that it holds does
    edges[::2], edges[1::2] = starts, np.maximum(starts[:-1], starts[1:] - length + 1)
    edges.setflags(write=False)  # as the shard's own are: another type would be compiled for
    first, last = (2 * int(unit) for unit in np.searchsorted(units.ordinal, [begin, end]))
    stretches = dataclasses.replace(spans, sequence_starts=edges)
    counts = histogram(stretches, lo, hi, np.arange(len(edges)), Filter(first=first, last=last))
    return np.flatnonzero(counts[::2])


def counts_by_shard(reader: IndexReader, token_ids: Sequence[int], selection: Selection) -> list[int]:
    """How often an n-gram occurs in each shard of the generation; 0 in those that are not selected, or failed."""
    return reader.retry_without_damaged(lambda: _counts_by_shard(reader, token_ids, selection))


def _counts_by_shard(reader: IndexReader, token_ids: Sequence[int], selection: Selection) -> list[int]:
    counts = dict.fromkeys(reader.generation.shards, 0)
    for item in reader.select(selection):
        whole = item.for_hits_of_length(len(token_ids))
        lo, hi = find(whole.spans, token_ids)
        counts[item.shard.info.name] = count(whole.spans, lo, hi, whole.filter)
    return list(counts.values())


def hit_of_shard(
    reader: IndexReader, token_ids: Sequence[int], selection: Selection, shard: int, number: int, context_tokens: int
) -> Hit | None:
    """Occurrence `number`, from 0, of an n-gram in the shard at that place of the generation; None where there are fewer."""
    names, ids = list(reader.generation.shards), np.asarray(token_ids)
    for item in reader.select(selection):
        if shard < len(names) and item.shard.info.name == names[shard]:
            whole = item.for_hits_of_length(len(ids))
            lo, hi = find(whole.spans, ids)
            positions = page(whole.spans, lo, hi, whole.filter, limit=number + 1)
            if len(positions) > number:
                places = places_of(item.shard, positions[number:], ids)
                return describe_places(reader, places, context_tokens, reader.visible_under(selection.visibility))[0]
    return None
