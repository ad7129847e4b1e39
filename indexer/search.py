"""Search: a query over text, token n-grams and fields → segments, counts, facets. Plain functions over an `IndexReader`.

1. The query is parsed (`indexer.query`) and its terms are counted in every shard, so that scores compare over shards.
2. In each shard that the selection takes something of, one query of the engine holds the question and the selection: rows
   of other steps, ranks, sources or documents are never looked at. The default selection is that of a trace: applied steps
   on the canonical lineage.
3. The best hits of the shards are merged. Equal scores stand in the order of the index, so that pages never overlap.
4. A hit's sequence is hashed against its leaf before it is shown; its text is decoded from its tokens (`snippets`).

Counts are of segments, and exact. A shard that turns out to be damaged is left out and named; the others answer.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import tantivy

from indexer.fulltext import FullTextDamage, FullTextHit
from indexer.index_reader import IndexReader
from indexer.query.compiler import Frequencies, ShardCompiler, filtered, numbers_query, value_query
from indexer.query.parser import MAX_NUMBER, parse
from indexer.query.patterns import Pattern, PatternMaker
from indexer.query.records import Node, NumberRange, Value, leaves
from indexer.search_cursor import Cursor, Place
from indexer.search_facets import facets_of, step_edges, wanted_facets
from indexer.search_records import Facets, SearchHit, SearchResult
from indexer.search_visibility import visible_query
from indexer.selection import Selection, step_interval
from indexer.shard import Shard, ShardDamage
from indexer.snippets import snippet_of
from indexer.trace_input import as_if_after_space
from indexer.visibility import EVERYTHING
from train_hooks.export_format.errors import QueryError

__all__ = ["MAX_DEPTH_OF_PAGES", "MAX_LIMIT", "SearchOptions", "Sort", "search"]

MAX_LIMIT, MAX_DEPTH_OF_PAGES = 1000, 10_000
Sort = Literal["relevance", "step", "step_desc"]
Ranked = tuple[float | Place, Shard, FullTextHit]
R = TypeVar("R")
S = TypeVar("S")


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Question:
    """A query made ready: its records, and the patterns of its leaves."""

    node: Node
    patterns: Mapping[Node, Sequence[Pattern]]
    options: SearchOptions

    def highlighted(self) -> list[Pattern]:
        """Patterns of the leaves that are not negated."""
        kept = [leaf for leaf, negated in leaves(self.node) if not negated]
        return [pattern for leaf in dict.fromkeys(kept) for pattern in self.patterns.get(leaf, ())]


@dataclass(frozen=True, kw_only=True, slots=True)
class _ShardQuery:
    """The question as the engine is asked it in one shard."""

    shard: Shard
    query: tantivy.Query


def search(reader: IndexReader, query: str, options: SearchOptions | None = None) -> SearchResult:
    """Search a run. Raises QueryError for a query that does not parse, or asks for what the run does not have, or for more
    than the limits; ShardDamage where no shard is left."""
    started = time.perf_counter()
    options = options or SearchOptions()
    node = parse(query)
    _check_selection(options.selection)
    question = _Question(node=node, patterns=_patterns(reader, node, query), options=options)
    asked = repr((query, options.sort, options.selection))
    cursor = Cursor() if options.cursor is None else Cursor.of_text(options.cursor, reader.generation.number, asked)
    if options.sort == "relevance" and cursor.offset + options.limit > MAX_DEPTH_OF_PAGES:
        raise QueryError(
            f"by relevance the first {MAX_DEPTH_OF_PAGES:,} hits can be listed; sort by step to list them all, or ask for less"
        )
    while True:
        try:
            return _search(reader, query, question, asked, cursor, started)
        except ShardDamage as damage:
            reader.fail(damage)


def _check_selection(selection: Selection) -> None:
    """What the engine could not be asked."""
    if selection.dp_rank is not None and selection.dp_rank > MAX_NUMBER:
        raise QueryError(f"dp_rank: expected numbers up to {MAX_NUMBER}, found {selection.dp_rank}")
    for name in ("source", "document_id"):
        value = getattr(selection, name)
        try:
            (value or "").encode()
        except UnicodeEncodeError as error:
            raise QueryError(f"{name}: expected text, found half a character in {value!r}") from error


def _search(
    reader: IndexReader, query: str, question: _Question, asked: str, cursor: Cursor, started: float
) -> SearchResult:
    options = question.options
    plans, edges = _plans(reader, question)
    count, ranked = _ranked(reader, plans, options, cursor)
    facets = _facets(reader, plans, edges) if options.facets else None
    patterns = question.highlighted()
    hits = tuple(_hit(reader, shard, hit, patterns) for _, shard, hit in ranked)
    is_more = cursor.offset + len(hits) < count and bool(hits)
    after = Cursor(offset=cursor.offset + len(hits), after=_place_of(ranked)) if is_more else None
    return SearchResult(
        run_id=reader.info.run_id,
        generation=reader.generation.number,
        shards_total=len(reader.generation.shards),
        shards_searched=len(plans),
        shards_failed=len(reader.failed),
        failures=tuple(reader.failed),
        truncated=cursor.offset + len(hits) < count,
        query=query,
        sort=options.sort,
        selection=options.selection,
        count=count,
        count_relation="gte" if reader.failed else "eq",
        hits=hits,
        next_cursor=None if after is None else after.text(reader.generation.number, asked),
        facets=facets,
        took_ms=round((time.perf_counter() - started) * 1e3, 3),
    )


def _patterns(reader: IndexReader, node: Node, query: str) -> dict[Node, Sequence[Pattern]]:
    def tokenize(text: str) -> list[list[int]]:
        encoded = (reader.tokenizer.encode(text), as_if_after_space(reader.tokenizer, text))
        return [variant.token_ids.tolist() for variant in encoded]

    has_tokenizer = reader.info.tokenizer_file is not None
    maker = PatternMaker(query=query, vocab_size=reader.info.vocab_size, tokenize=tokenize if has_tokenizer else None)
    return {leaf: maker.patterns_of(leaf) for leaf, _ in leaves(node) if not isinstance(leaf, NumberRange | Value)}


def _plans(reader: IndexReader, question: _Question) -> tuple[list[_ShardQuery], tuple[int, ...]]:
    """The shards to ask and what, and the edges of the bins of steps."""
    exact = {pattern for found in question.patterns.values() for pattern in found if pattern.is_exact}
    terms: set[tuple[str, str]] = {(pattern.field, term) for pattern in exact for term in pattern.terms}
    in_shards = {
        shard.info.name: counted for shard, counted in zip(reader.shards, _counted(reader, terms), strict=True)
    }
    visibility = reader.visible_under(question.options.selection.visibility)
    seen = {shard.info.name: visible_query(reader, shard, visibility) for shard in reader.shards}
    visible = in_shards if visibility == EVERYTHING else _visible_counts(reader, terms, seen)
    in_index = Frequencies(
        num_documents=sum(counted.num_documents for counted in visible.values()),
        of_term={term: sum(counted.of_term[term] for counted in visible.values()) for term in terms},
    )
    plans, first, last = [], None, 0
    for shard in reader.shards:
        steps = step_interval(shard, question.options.selection, reader.canonical)
        if steps is None:
            continue
        first, last = min(first if first is not None else steps[0], steps[0]), max(last, steps[1])
        compiler = ShardCompiler(
            schema=shard.full_text.schema,
            attempt=shard.info.attempt,
            patterns=question.patterns,
            in_shard=in_shards[shard.info.name],
            in_index=in_index,
        )
        filters = list(_filters(shard, steps, question.options.selection))
        if (visible_part := seen[shard.info.name]) is not None:
            filters.append(visible_part)
        plans.append(_ShardQuery(shard=shard, query=filtered(compiler.compile(question.node), filters)))
    return plans, () if first is None else step_edges(first, last)


def _counted(reader: IndexReader, terms: set[tuple[str, str]]) -> list[Frequencies]:
    def counted(shard: Shard) -> Frequencies:
        index = shard.full_text
        of_term = {(name, term): index.document_frequency(name, term) for name, term in terms}
        return Frequencies(num_documents=index.num_documents, of_term=of_term)

    return _over(reader, reader.shards, lambda shard: shard, counted)


def _visible_counts(
    reader: IndexReader, terms: set[tuple[str, str]], seen: Mapping[str, tantivy.Query | None]
) -> dict[str, Frequencies]:
    """How many visible segments there are, and hold each term, by shard name."""

    def counted(shard: Shard) -> Frequencies:
        index, filters = shard.full_text, [query for query in (seen[shard.info.name],) if query is not None]

        def number(query: tantivy.Query) -> int:
            return index.first(filtered(query, filters), 0, last=False)[0]

        of_term = {(name, term): number(value_query(index.schema, name, term)) for name, term in terms}
        return Frequencies(num_documents=number(tantivy.Query.all_query()), of_term=of_term)

    found = _over(reader, reader.shards, lambda shard: shard, counted)
    return {shard.info.name: counts for shard, counts in zip(reader.shards, found, strict=True)}


def _filters(shard: Shard, steps: tuple[int, int], selection: Selection) -> Iterator[tantivy.Query]:
    index, schema = shard.full_text, shard.full_text.schema
    if steps != (shard.info.first_step, shard.info.last_step):
        yield numbers_query(schema, "global_step", steps[0], steps[1] + 1)
    if selection.lineage == "canonical" and index.document_frequency("status", "applied") < index.num_documents:
        yield value_query(schema, "status", "applied")
    if selection.dp_rank is not None:
        yield numbers_query(schema, "dp_rank", selection.dp_rank, selection.dp_rank + 1)
    if selection.source is not None:
        yield value_query(schema, "source", selection.source)
    if selection.document_id is not None:
        yield value_query(schema, "document", selection.document_id)


def _over(reader: IndexReader, items: Sequence[R], shard_of: Callable[[R], Shard], ask: Callable[[R], S]) -> list[S]:
    """`ask` of each, side by side where there are many. Raises ShardDamage that names the shard."""

    def named(item: R) -> S:
        try:
            return ask(item)
        except FullTextDamage as error:
            raise ShardDamage(shard_of(item).info.name, str(error)) from error

    return list(reader.executor.map(named, items) if reader.executor is not None else map(named, items))


def _ranked(
    reader: IndexReader, plans: Sequence[_ShardQuery], options: SearchOptions, cursor: Cursor
) -> tuple[int, list[Ranked]]:
    """(how many match in all, this page of them)."""
    if options.sort == "relevance":
        depth = cursor.offset + options.limit
        found = _over(reader, plans, _shard_of, lambda plan: plan.shard.full_text.best(plan.query, depth))
        ranked: list[Ranked] = [
            (-(hit.score or 0.0), plan.shard, hit) for plan, (_, hits) in zip(plans, found, strict=True) for hit in hits
        ]
        ranked.sort(key=lambda item: item[0])  # stable: by shard, then as the engine has them
        return sum(count for count, _ in found), ranked[cursor.offset : depth]
    is_last = options.sort == "step_desc"

    def page(plan: _ShardQuery) -> tuple[int, list[FullTextHit]]:
        index = plan.shard.full_text
        rest = filtered(plan.query, list(_after(plan.shard, cursor.after, is_last=is_last)))
        count, hits = index.first(rest, options.limit, last=is_last)
        return (count if cursor.after is None else index.first(plan.query, 0)[0]), hits

    found = _over(reader, plans, _shard_of, page)
    placed = [
        (_place(plan.shard, hit), plan.shard, hit) for plan, (_, hits) in zip(plans, found, strict=True) for hit in hits
    ]
    placed.sort(key=lambda item: item[0], reverse=is_last)
    return sum(count for count, _ in found), list(placed[: options.limit])


def _shard_of(plan: _ShardQuery) -> Shard:
    return plan.shard


def _place(shard: Shard, hit: FullTextHit) -> Place:
    step = int(shard.steps[shard.units.ordinal[hit.unit]])
    return Place(global_step=step, shard=shard.info.name, unit=hit.unit)


def _place_of(ranked: Sequence[Ranked]) -> Place | None:
    key = ranked[-1][0]
    return key if isinstance(key, Place) else None


def _after(shard: Shard, place: Place | None, *, is_last: bool) -> Iterator[tantivy.Query]:
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


def _facets(reader: IndexReader, plans: Sequence[_ShardQuery], edges: tuple[int, ...]) -> Facets:
    if not plans:
        return facets_of([], edges)
    wanted = wanted_facets(edges)
    found = _over(reader, plans, _shard_of, lambda plan: plan.shard.full_text.aggregate(plan.query, wanted))
    return facets_of(found, edges)


def _hit(reader: IndexReader, shard: Shard, hit: FullTextHit, patterns: Sequence[Pattern]) -> SearchHit:
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
