"""Search: a query over text, token n-grams and fields → segments, counts, facets. Plain functions over an `IndexReader`.

1. The query is parsed (`indexer.search.query`) and its terms are counted in every shard, so that scores compare over shards.
2. In each shard that the selection takes something of, one query of the engine holds the question and the selection: rows
   of other steps, ranks, sources or documents are never looked at. The default selection is that of a trace: applied steps
   on the canonical lineage.
3. The best hits of the shards are merged. Equal scores stand in the order of the index, so that pages never overlap.
4. A hit's sequence is hashed against its leaf before it is shown; its text is decoded from its tokens (`snippets`).

Counts are of segments, and exact. A shard that turns out to be damaged is left out and named; the others answer.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import tantivy

from indexer.answers.coverage import coverage_of
from indexer.answers.cursor import fingerprint
from indexer.fulltext.engine import FullTextHit
from indexer.limits import MAX_LIMIT, Sort
from indexer.reader import IndexReader
from indexer.search.cursor import HitPlace, SearchCursor
from indexer.search.facets import facets_of, wanted_facets
from indexer.search.plan import Question, ShardQuery, ask_shards, plan, question_of
from indexer.search.query.compiler import filtered, numbers_query
from indexer.search.query.patterns import Gram, Pattern
from indexer.search.records import Facets, SearchHit, SearchResult
from indexer.search.snippets import snippet_of
from indexer.selection.rows import Selection
from indexer.storage.shard import Shard
from train_hooks.export_format.errors import QueryError

__all__ = ["MAX_DEPTH_OF_PAGES", "SearchOptions", "search"]

MAX_DEPTH_OF_PAGES = 10_000
Ranked = tuple[float | HitPlace, Shard, FullTextHit]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """limit: hits on a page; 0 counts alone. cursor: of the page before. facets: count by source, rank and steps as well."""

    selection: Selection = field(default_factory=Selection)
    limit: int = 10
    sort: Sort = "relevance"
    cursor: str | None = None
    facets: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.limit <= MAX_LIMIT:
            raise QueryError(f"limit: expected 0 to {MAX_LIMIT}, found {self.limit}")
        if self.sort not in ("relevance", "step", "step_desc"):
            raise QueryError(f"sort: expected relevance, step or step_desc, found {self.sort!r}")


def search(reader: IndexReader, query: str, options: SearchOptions | None = None) -> SearchResult:
    """Search a run. Raises QueryError for a query that does not parse, or asks for what the run does not have, or for more
    than the limits; ShardDamage where no shard is left."""
    started = time.perf_counter()
    chosen = options or SearchOptions()
    question = question_of(reader, query, chosen.selection)
    question_id = fingerprint(query, chosen.sort, chosen.selection)
    cursor = SearchCursor()
    if chosen.cursor is not None:
        cursor = SearchCursor.decode(chosen.cursor, reader.generation.number, question_id)
    if chosen.sort == "relevance" and cursor.offset + chosen.limit > MAX_DEPTH_OF_PAGES:
        raise QueryError(
            f"by relevance the first {MAX_DEPTH_OF_PAGES:,} hits can be listed; sort by step to list them all, or ask for less"
        )
    return reader.retry_without_damaged(lambda: _search(reader, query, question, chosen, question_id, cursor, started))


def _search(
    reader: IndexReader,
    query: str,
    question: Question,
    options: SearchOptions,
    question_id: str,
    cursor: SearchCursor,
    started: float,
) -> SearchResult:
    plans, edges = plan(reader, question)
    count, ranked = _ranked(reader, plans, options, cursor)
    facets = _facets(reader, plans, edges) if options.facets else None
    patterns = question.highlighted()
    hits = tuple(_hit(reader, shard, hit, patterns) for _, shard, hit in ranked)
    truncated = cursor.offset + len(hits) < count
    is_more = truncated and bool(hits)
    after = SearchCursor(offset=cursor.offset + len(hits), after=_place_of(ranked)) if is_more else None
    return SearchResult(
        query=query,
        sort=options.sort,
        selection=options.selection,
        count=count,
        hits=hits,
        next_cursor=None if after is None else after.encode(reader.generation.number, question_id),
        facets=facets,
        **coverage_of(reader, shards_searched=len(plans), truncated=truncated, started_s=started).fields(),
    )


def _ranked(
    reader: IndexReader, plans: Sequence[ShardQuery], options: SearchOptions, cursor: SearchCursor
) -> tuple[int, list[Ranked]]:
    """(how many match in all, this page of them)."""
    if options.sort == "relevance":
        depth = cursor.offset + options.limit
        found = ask_shards(reader, plans, lambda item: item.shard.full_text.best(item.query, depth))
        ranked: list[Ranked] = [
            (-(hit.score or 0.0), item.shard, hit) for item, (_, hits) in zip(plans, found, strict=True) for hit in hits
        ]
        ranked.sort(key=lambda item: item[0])  # stable: by shard, then as the engine has them
        return sum(count for count, _ in found), ranked[cursor.offset : depth]
    is_last = options.sort == "step_desc"

    def page(item: ShardQuery) -> tuple[int, list[FullTextHit]]:
        index = item.shard.full_text
        rest = filtered(item.query, list(_after(item.shard, cursor.after, is_last=is_last)))
        count, hits = index.first(rest, options.limit, last=is_last)
        return (count if cursor.after is None else index.first(item.query, 0)[0]), hits

    found = ask_shards(reader, plans, page)
    placed = [
        (_place(item.shard, hit), item.shard, hit) for item, (_, hits) in zip(plans, found, strict=True) for hit in hits
    ]
    placed.sort(key=lambda item: item[0], reverse=is_last)
    return sum(count for count, _ in found), list(placed[: options.limit])


def _place(shard: Shard, hit: FullTextHit) -> HitPlace:
    step = int(shard.steps[shard.units.ordinal[hit.unit]])
    return HitPlace(global_step=step, shard=shard.info.name, unit=hit.unit)


def _place_of(ranked: Sequence[Ranked]) -> HitPlace | None:
    key = ranked[-1][0]
    return key if isinstance(key, HitPlace) else None


def _after(shard: Shard, place: HitPlace | None, *, is_last: bool) -> Iterator[tantivy.Query]:
    """What leaves the hits after `place` alone; before it, where the last ones come first."""
    if place is None:
        return
    schema, name = shard.full_text.schema, shard.info.name
    if name == place.shard:
        low, high = (0, place.unit) if is_last else (place.unit + 1, None)
        yield numbers_query(schema, "unit", low, high)
    elif is_last:
        yield numbers_query(schema, "global_step", 0, place.global_step + (name < place.shard))
    else:
        yield numbers_query(schema, "global_step", place.global_step + (name < place.shard), None)


def _facets(reader: IndexReader, plans: Sequence[ShardQuery], edges: tuple[int, ...]) -> Facets:
    if not plans:
        return facets_of([], edges)
    wanted = wanted_facets(edges)
    found = ask_shards(reader, plans, lambda item: item.shard.full_text.aggregate(item.query, wanted))
    return facets_of(found, edges)


def _hit(reader: IndexReader, shard: Shard, hit: FullTextHit, patterns: Sequence[Pattern | Gram]) -> SearchHit:
    units = shard.units
    ordinal, row = int(units.ordinal[hit.unit]), int(units.segment[hit.unit])
    sequence = reader.sequence_at(shard, ordinal)
    first = int(shard.spans.sequence_starts[ordinal])
    start, end = (place - first for place in units.extent(hit.unit))
    tokens = sequence.tokens[start:end]
    snippet = None
    if reader.info.tokenizer_file is not None:
        snippet = snippet_of(tokens, lambda ids: reader.tokenizer.decode_many([ids])[0], patterns)
    segment = next((s for s in sequence.segments if s.start <= start < s.start + s.length), None) if row >= 0 else None
    return SearchHit(address=sequence.address, start=start, end=end, segment=segment, score=hit.score, snippet=snippet)
