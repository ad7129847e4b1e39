"""Full text of one shard in Tantivy: one document a segment of a packed sequence.

The text itself is not stored, it is decoded from the tokens at need. Letters of Chinese, Japanese and Korean are terms
of their own, so that a phrase is any run of characters; other scripts are cut into words. Traps of the engine that are
kept away here: a phrase of one word and a limit of 0 abort it, deep nesting crashes its parser.
"""

import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import tantivy

from train_hooks.export_format.errors import QueryError

__all__ = ["SegmentText", "TextHit", "TextIndex", "build_text_index"]

_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}ー"
_TERM = rf"[{_CJK}]|[\p{{L}}\p{{N}}_&&[^{_CJK}]]+"
_ANALYZER = "kiseki_v1"
_HEAP_BYTES = 128 << 20
MAX_QUERY_CHARACTERS, MAX_DEPTH, MAX_CLAUSES, MAX_LIMIT = 512, 16, 64, 100


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentText:
    """What is indexed of one segment. `ordinal` is its sequence's in the shard, `segment` its number in the sequence."""

    ordinal: int
    segment: int
    global_step: int
    dp_rank: int
    source: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TextHit:
    """A segment that matches, with its BM25 score in this shard."""

    ordinal: int
    segment: int
    score: float


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", stored=False, tokenizer_name=_ANALYZER, index_option="position")
    builder.add_text_field("source", stored=False, tokenizer_name="raw", index_option="basic", fast=True)
    for name in ("ordinal", "segment", "global_step", "dp_rank"):
        builder.add_unsigned_field(name, stored=name in ("ordinal", "segment"), indexed=True, fast=True)
    return builder.build()


def _register(index: tantivy.Index) -> None:
    analyzer = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.regex(_TERM)).filter(tantivy.Filter.lowercase()).build()
    index.register_tokenizer(_ANALYZER, analyzer)


def build_text_index(directory: Path, segments: Iterable[SegmentText]) -> int:
    """Write the index of a shard that is being built; returns the number of segments."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    schema = _schema()
    index = tantivy.Index(schema, path=str(directory))
    _register(index)
    writer = index.writer(_HEAP_BYTES, 1)
    count = 0
    for segment in segments:
        document = {
            "text": segment.text,
            "source": segment.source,
            "ordinal": segment.ordinal,
            "segment": segment.segment,
            "global_step": segment.global_step,
            "dp_rank": segment.dp_rank,
        }
        writer.add_document(tantivy.Document.from_dict(document, schema))
        count += 1
    writer.commit()
    writer.wait_merging_threads()
    return count


class TextIndex:
    """The full text of one shard, read-only."""

    def __init__(self, directory: Path) -> None:
        self._index = tantivy.Index.open(str(directory))
        _register(self._index)

    def search(
        self, query: str, *, limit: int, first_step: int | None = None, last_step: int | None = None
    ) -> tuple[int, list[TextHit]]:
        """(number of matching segments, the best `limit` of them). Raises QueryError for a query beyond the limits."""
        parsed = self._parse(query)
        if first_step is not None or last_step is not None:
            schema = self._index.schema
            low, high = first_step or 0, last_step if last_step is not None else (1 << 62)
            steps = tantivy.Query.range_query(schema, "global_step", tantivy.FieldType.Unsigned, low, high)
            parsed = tantivy.Query.boolean_query([(tantivy.Occur.Must, parsed), (tantivy.Occur.Must, steps)])
        searcher = self._index.searcher()
        found = searcher.search(parsed, limit=max(1, min(limit, MAX_LIMIT)), count=True)
        hits = []
        for score, place in found.hits:
            stored = searcher.doc(place)
            hits.append(TextHit(ordinal=stored["ordinal"][0], segment=stored["segment"][0], score=float(score)))
        return int(found.count), hits  # type: ignore[attr-defined]  # missing in the stubs

    def _parse(self, query: str) -> tantivy.Query:
        _check_query(query)
        try:
            return self._index.parse_query(query, ["text"])
        except ValueError as error:
            raise QueryError(
                f"the query does not parse: {error}; quote text that holds : ( ) or quotation marks"
            ) from error


def _check_query(query: str) -> None:
    if not query.strip():
        raise QueryError("expected a query, found none")
    if len(query) > MAX_QUERY_CHARACTERS:
        raise QueryError(f"expected at most {MAX_QUERY_CHARACTERS} characters of query, found {len(query)}")
    depth = deepest = 0
    for character in query:
        depth += {"(": 1, ")": -1}.get(character, 0)
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise QueryError(f"expected parentheses at most {MAX_DEPTH} deep, found {deepest}")
    if len(re.findall(r"\S+", query)) > MAX_CLAUSES:
        raise QueryError(f"expected at most {MAX_CLAUSES} clauses")
