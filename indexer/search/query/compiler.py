"""A query's records → query objects of the engine, for one shard.

A token n-gram is no question to the engine: the span index has found the units that hold it, and they are the clause.

Scores: a clause of terms scores by BM25, an n-gram its inverse document frequency in the whole index, a prefix or a fuzzy
term 1, a filter and whatever is negated nothing.
The engine knows the frequencies of its shard alone, so every clause is boosted by what its inverse document frequency is in
the whole index over what it is in the shard (`Frequencies`): scores of different shards compare, but for the mean length of
their segments, which is theirs.

The engine's own query parser is not used: deep nesting crashes it. Traps kept away here: a phrase of one term aborts, a
boolean query of negations alone matches nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import tantivy

from indexer.search.query.patterns import Gram, Pattern
from indexer.search.query.records import And, Node, Not, NumberRange, Or, Value

__all__ = ["FoundGram", "Frequencies", "ShardCompiler", "filtered", "numbers_query", "value_query"]

_FIELD_OF = {"step": "global_step", "dp_rank": "dp_rank"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Frequencies:
    """In how many of `num_documents` documents each term stands."""

    num_documents: int
    of_term: Mapping[str, int]

    def of_pattern(self, pattern: Pattern) -> float:
        """Sum of the inverse document frequencies of a pattern's terms, as the engine has them."""
        return sum(self.idf(self.of_term[term]) for term in pattern.terms)

    def idf(self, frequency: int) -> float:
        """Inverse document frequency of what stands in so many documents."""
        return math.log1p((self.num_documents - frequency + 0.5) / (frequency + 0.5))


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundGram:
    """A token n-gram in one shard: the units that hold it, i64 [n]; `score` of each."""

    units: npt.NDArray[np.int64]
    score: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardCompiler:
    """Compiles for one shard. patterns: of each leaf that has some; in_shard, in_index: how frequent their terms are."""

    schema: tantivy.Schema
    attempt: int
    patterns: Mapping[Node, Sequence[Pattern | Gram]]
    grams: Mapping[Gram, FoundGram]
    in_shard: Frequencies
    in_index: Frequencies

    def compile(self, node: Node) -> tantivy.Query:
        """The query object of a node."""
        if isinstance(node, Not):
            return all_but([self.compile(node.child)])
        if isinstance(node, Or):
            each = dict.fromkeys(node.children)
            return tantivy.Query.boolean_query([(tantivy.Occur.Should, self.compile(child)) for child in each])
        if isinstance(node, And):
            return self._all(node)
        if isinstance(node, NumberRange):
            return self._range(node)
        if isinstance(node, Value):
            return value_query(self.schema, node.name, node.value)
        found = [
            self._pattern(pattern) if isinstance(pattern, Pattern) else self._units(self.grams[pattern])
            for pattern in self.patterns[node]
        ]
        if len(found) == 1:
            return found[0]
        return tantivy.Query.boolean_query([(tantivy.Occur.Should, query) for query in found])

    def _all(self, node: And) -> tantivy.Query:
        children = dict.fromkeys(node.children)
        negated = [self.compile(child.child) for child in children if isinstance(child, Not)]
        wanted = [self.compile(child) for child in children if not isinstance(child, Not)]
        if not wanted:
            return all_but(negated)
        clauses = [(tantivy.Occur.Must, query) for query in wanted]
        return tantivy.Query.boolean_query(clauses + [(tantivy.Occur.MustNot, query) for query in negated])

    def _range(self, node: NumberRange) -> tantivy.Query:
        if node.name != "attempt":
            return numbers_query(self.schema, _FIELD_OF[node.name], node.low, node.high)
        inside = (node.low or 0) <= self.attempt and (node.high is None or self.attempt < node.high)
        return _unscored(tantivy.Query.all_query()) if inside else tantivy.Query.empty_query()

    def _units(self, found: FoundGram) -> tantivy.Query:
        if len(found.units) == 0:
            return tantivy.Query.empty_query()
        units = tantivy.Query.term_set_query(self.schema, "unit", found.units.tolist())
        return tantivy.Query.const_score_query(units, found.score)

    def _pattern(self, pattern: Pattern) -> tantivy.Query:
        field, terms, query = "text", list(pattern.terms), tantivy.Query
        if pattern.distance:
            return query.fuzzy_term_query(self.schema, field, terms[0], pattern.distance, True)
        if pattern.is_prefix and len(terms) > 1:
            found = query.regex_phrase_query(self.schema, field, [*terms[:-1], terms[-1] + ".*"])
            return query.const_score_query(found, 1.0)
        if pattern.is_prefix:
            return query.regex_query(self.schema, field, terms[0] + ".*")
        if len(terms) == 1:
            found = query.term_query(self.schema, field, terms[0])
        else:
            found = query.phrase_query(self.schema, field, list(terms), pattern.slop)
        return query.boost_query(found, self.in_index.of_pattern(pattern) / self.in_shard.of_pattern(pattern))


def numbers_query(schema: tantivy.Schema, field: str, low: int | None, high: int | None) -> tantivy.Query:
    """low ≤ field < high; scores nothing."""
    low = low or 0
    if high is not None and high <= low:
        return tantivy.Query.empty_query()
    last = None if high is None else high - 1
    return _unscored(tantivy.Query.range_query(schema, field, tantivy.FieldType.Unsigned, low, last))


def value_query(schema: tantivy.Schema, field: str, value: str) -> tantivy.Query:
    """A field that has exactly this value; scores nothing."""
    return _unscored(tantivy.Query.term_query(schema, field, value, "basic"))


def filtered(query: tantivy.Query, filters: Sequence[tantivy.Query]) -> tantivy.Query:
    """`query` where every filter holds."""
    if not filters:
        return query
    return tantivy.Query.boolean_query([(tantivy.Occur.Must, each) for each in (query, *filters)])


def any_of(queries: Sequence[tantivy.Query]) -> tantivy.Query:
    """Where one of the queries holds; nowhere if there is none."""
    return tantivy.Query.boolean_query([(tantivy.Occur.Should, query) for query in queries])


def all_but(negated: Sequence[tantivy.Query]) -> tantivy.Query:
    """Everything where none of the queries holds; scores nothing."""
    everything = (tantivy.Occur.Must, _unscored(tantivy.Query.all_query()))
    return tantivy.Query.boolean_query([everything, *((tantivy.Occur.MustNot, query) for query in negated)])


def _unscored(query: tantivy.Query) -> tantivy.Query:
    return tantivy.Query.const_score_query(query, 0.0)
