"""What a search asks the engine in each shard: the question and the selection as one query.

A step range, a rank, a source or a document is a clause beside the question, so rows of others are never looked at. Terms
and token n-grams are counted in every shard first, also in those that the selection leaves out: scores depend on no
selection, and on what may be seen alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import tantivy

from indexer.fulltext.engine import FullTextDamage
from indexer.reader import IndexReader
from indexer.search.facets import step_edges
from indexer.search.query.compiler import FoundGram, Frequencies, ShardCompiler, filtered, numbers_query, value_query
from indexer.search.query.parser import MAX_NUMBER, parse
from indexer.search.query.patterns import Gram, Pattern, PatternMaker
from indexer.search.query.records import Node, NumberRange, Value, leaves
from indexer.search.visibility import visible_query
from indexer.selection.rows import Selection, step_interval
from indexer.selection.visibility import EVERYTHING, Visibility
from indexer.storage.shard import Shard, ShardDamage
from indexer.trace.counts import count_in_all_shards
from indexer.trace.input import as_if_after_space
from train_hooks.export_format.errors import QueryError

__all__ = ["Question", "ShardQuery", "ask_shards", "plan", "question_of"]

R = TypeVar("R")
S = TypeVar("S")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A query made ready: its records, the patterns of its leaves, and which rows it is about."""

    node: Node
    patterns: Mapping[Node, Sequence[Pattern | Gram]]
    selection: Selection

    def highlighted(self) -> list[Pattern | Gram]:
        """Patterns of the leaves that are not negated."""
        kept = [leaf for leaf, negated in leaves(self.node) if not negated]
        return [pattern for leaf in dict.fromkeys(kept) for pattern in self.patterns.get(leaf, ())]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardQuery:
    """The question as the engine is asked it in one shard."""

    shard: Shard
    query: tantivy.Query


def question_of(reader: IndexReader, query: str, selection: Selection) -> Question:
    """Raises QueryError for a query that does not parse, or that asks for what the run does not have."""
    node = parse(query)
    _check_selection(selection)
    return Question(node=node, patterns=_patterns(reader, node, query), selection=selection)


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


def _patterns(reader: IndexReader, node: Node, query: str) -> dict[Node, Sequence[Pattern | Gram]]:
    def tokenize(text: str) -> list[list[int]]:
        encoded = (reader.tokenizer.encode(text), as_if_after_space(reader.tokenizer, text))
        return [variant.token_ids.tolist() for variant in encoded]

    has_tokenizer = reader.info.tokenizer_file is not None
    maker = PatternMaker(query=query, vocab_size=reader.info.vocab_size, tokenize=tokenize if has_tokenizer else None)
    return {leaf: maker.patterns_of(leaf) for leaf, _ in leaves(node) if not isinstance(leaf, NumberRange | Value)}


def plan(reader: IndexReader, question: Question) -> tuple[list[ShardQuery], tuple[int, ...]]:
    """The shards to ask and what, and the edges of the bins of steps."""
    statistics = _statistics(reader, question)
    chosen = _selected_shards(reader, question.selection)
    queries = _side_by_side(
        reader, chosen, lambda item: item[0], lambda item: _query_of_shard(question, statistics, *item)
    )
    if not chosen:
        return queries, ()
    return queries, step_edges(min(steps[0] for _, steps in chosen), max(steps[1] for _, steps in chosen))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Statistics:
    """What scores and queries need of every shard, selected or not. Mappings by shard name, but for gram_scores.

    in_shards: how often each term occurs. in_index: the same over all shards, of what may be seen. visible: the clause
    that leaves what may be seen, None where that is everything.
    """

    in_shards: Mapping[str, Frequencies]
    in_index: Frequencies
    visible: Mapping[str, tantivy.Query | None]
    gram_scores: Mapping[Gram, float]


def _statistics(reader: IndexReader, question: Question) -> _Statistics:
    patterns = {pattern for found in question.patterns.values() for pattern in found}
    terms = {
        term for pattern in patterns if isinstance(pattern, Pattern) and pattern.is_exact for term in pattern.terms
    }
    in_shards = {
        shard.info.name: counted for shard, counted in zip(reader.shards, _counted(reader, terms), strict=True)
    }
    visibility = reader.visible_under(question.selection.visibility)
    visible = {shard.info.name: visible_query(reader, shard, visibility) for shard in reader.shards}
    visible_counts = in_shards if visibility == EVERYTHING else _visible_counts(reader, terms, visible)
    in_index = Frequencies(
        num_documents=sum(counted.num_documents for counted in visible_counts.values()),
        of_term={term: sum(counted.of_term[term] for counted in visible_counts.values()) for term in terms},
    )
    grams = [pattern for pattern in patterns if isinstance(pattern, Gram)]
    scores = _gram_scores(reader, grams, in_index, question.selection.visibility)
    return _Statistics(in_shards=in_shards, in_index=in_index, visible=visible, gram_scores=scores)


def _gram_scores(
    reader: IndexReader, grams: Sequence[Gram], in_index: Frequencies, visibility: Visibility
) -> dict[Gram, float]:
    everything, most = Selection(lineage="all", visibility=visibility), in_index.num_documents
    counts = {gram: count_in_all_shards(reader, gram.token_ids, everything).count for gram in grams}
    return {gram: in_index.idf(min(most, count)) for gram, count in counts.items()}


def _selected_shards(reader: IndexReader, selection: Selection) -> list[tuple[Shard, tuple[int, int]]]:
    """The shards that a selection takes steps of, each with the first and the last of them."""
    found = [(shard, step_interval(shard, selection, reader.canonical)) for shard in reader.shards]
    return [(shard, steps) for shard, steps in found if steps is not None]


def _query_of_shard(question: Question, statistics: _Statistics, shard: Shard, steps: tuple[int, int]) -> ShardQuery:
    compiler = ShardCompiler(
        schema=shard.full_text.schema,
        attempt=shard.info.attempt,
        patterns=question.patterns,
        grams=_grams(shard, statistics.gram_scores, steps),
        in_shard=statistics.in_shards[shard.info.name],
        in_index=statistics.in_index,
    )
    filters = list(_filters(shard, steps, question.selection))
    visible = statistics.visible[shard.info.name]
    if visible is not None:
        filters.append(visible)
    return ShardQuery(shard=shard, query=filtered(compiler.compile(question.node), filters))


def _grams(shard: Shard, scores: Mapping[Gram, float], steps: tuple[int, int]) -> dict[Gram, FoundGram]:
    """Where n-grams stand in the steps of a shard, the first and the last of which are given."""
    if not scores:
        return {}
    from indexer.trace.ngrams import units_of_ngram  # it loads numba, which a search without n-grams does not need

    begin, end = (int(ordinal) for ordinal in np.searchsorted(shard.steps, [steps[0], steps[1] + 1]))
    return {
        gram: FoundGram(units=units_of_ngram(shard.spans, shard.units, gram.token_ids, begin, end), score=score)
        for gram, score in scores.items()
    }


def _counted(reader: IndexReader, terms: set[str]) -> list[Frequencies]:
    def counted(shard: Shard) -> Frequencies:
        index = shard.full_text
        of_term = {term: index.document_frequency("text", term) for term in terms}
        return Frequencies(num_documents=index.num_documents, of_term=of_term)

    return _side_by_side(reader, reader.shards, lambda shard: shard, counted)


def _visible_counts(
    reader: IndexReader, terms: set[str], visible: Mapping[str, tantivy.Query | None]
) -> dict[str, Frequencies]:
    """How many visible segments there are, and hold each term, by shard name."""

    def counted(shard: Shard) -> Frequencies:
        index, filters = shard.full_text, [query for query in (visible[shard.info.name],) if query is not None]

        def number(query: tantivy.Query) -> int:
            return index.first(filtered(query, filters), 0, last=False)[0]

        of_term = {term: number(value_query(index.schema, "text", term)) for term in terms}
        return Frequencies(num_documents=number(tantivy.Query.all_query()), of_term=of_term)

    found = _side_by_side(reader, reader.shards, lambda shard: shard, counted)
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


def ask_shards(reader: IndexReader, plans: Sequence[ShardQuery], ask: Callable[[ShardQuery], S]) -> list[S]:
    """`ask` of each shard's query, side by side where there are many. Raises ShardDamage that names the shard."""
    return _side_by_side(reader, plans, lambda plan: plan.shard, ask)


def _side_by_side(
    reader: IndexReader, items: Sequence[R], shard_of: Callable[[R], Shard], ask: Callable[[R], S]
) -> list[S]:
    """`ask` of each, side by side where there are many. Raises ShardDamage that names the shard."""

    def named(item: R) -> S:
        try:
            return ask(item)
        except FullTextDamage as error:
            raise ShardDamage(shard_of(item).info.name, str(error)) from error

    return list(reader.executor.map(named, items) if reader.executor is not None else map(named, items))
