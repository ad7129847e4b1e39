"""Full text of one shard in Tantivy: one document a segment of a packed sequence.

    text          the decoded text's terms (`indexer.fulltext.terms`), with positions; absent where the run has no tokenizer
    source, document, status   as they are; source is a column as well, for facets
    global_step, dp_rank, unit   numbers, as columns; `unit` says which stretch of the shard the document is

Neither text nor tokens are stored: they are in the span index, which also says which units hold a token n-gram; `unit` is
a term as well, so that those are clauses of a query like any other. What a sequence has outside its segments, or all of it
where it has none, are documents too, without source.

The engine aborts by a panic where its files are damaged; that becomes FullTextDamage here.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tantivy

from indexer.fulltext.terms import MAX_TERM_BYTES, spaced_terms
from train_hooks.export_format.errors import DamageError, QueryError

__all__ = ["FullTextDamage", "FullTextHit", "FullTextIndex", "FullTextUnit", "build_full_text"]

_TERMS = "kiseki_terms"
_MIN_HEAP_BYTES, _MAX_HEAP_BYTES, _HEAP_BYTES_PER_TOKEN = 32 << 20, 1 << 30, 16


class FullTextDamage(DamageError):
    """Files of the full text that the engine cannot read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FullTextUnit:
    """One document. `unit`: its stretch of the shard; text None: the run has no tokenizer."""

    unit: int
    global_step: int
    dp_rank: int
    status: str
    source: str | None
    document_id: str | None
    text: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FullTextHit:
    """A document that matches. score: None where hits are sorted by their place."""

    unit: int
    score: float | None


def _schema() -> tantivy.Schema:
    builder = tantivy.SchemaBuilder()
    builder.add_text_field("text", tokenizer_name=_TERMS, index_option="position")
    builder.add_text_field("source", tokenizer_name="raw", index_option="basic", fast=True)
    for name in ("document", "status"):
        builder.add_text_field(name, tokenizer_name="raw", index_option="basic")
    builder.add_unsigned_field("unit", fast=True, indexed=True)
    for name in ("global_step", "dp_rank"):
        builder.add_unsigned_field(name, fast=True)
    return builder.build()


def _register(index: tantivy.Index) -> None:
    short = tantivy.Filter.remove_long(MAX_TERM_BYTES + 1)
    terms = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).filter(short).build()
    index.register_tokenizer(_TERMS, terms)


def build_full_text(directory: Path, units: Iterable[FullTextUnit], num_tokens: int) -> None:
    """Write the index of a shard that is being built. num_tokens, about: for the memory that it may take."""
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    index = tantivy.Index(_schema(), path=str(directory))
    _register(index)
    heap = min(max(num_tokens * _HEAP_BYTES_PER_TOKEN, _MIN_HEAP_BYTES), _MAX_HEAP_BYTES)
    writer = index.writer(heap, 1)
    for unit in units:
        writer.add_document(_document(unit))
    writer.commit()
    writer.wait_merging_threads()


def _document(unit: FullTextUnit) -> tantivy.Document:
    document = tantivy.Document()
    if unit.text is not None:
        document.add_text("text", spaced_terms(unit.text))
    document.add_text("status", unit.status)
    if unit.source is not None:
        document.add_text("source", unit.source)
    if unit.document_id is not None:
        document.add_text("document", unit.document_id)
    document.add_unsigned("unit", unit.unit)
    document.add_unsigned("global_step", unit.global_step)
    document.add_unsigned("dp_rank", unit.dp_rank)
    return document


class FullTextIndex:
    """The full text of one shard, read-only. Safe to share between threads."""

    def __init__(self, directory: Path) -> None:
        """Raises FullTextDamage where the files are none that the engine reads."""
        self._directory = directory
        with _engine(directory), _lockable(directory) as path:
            index = tantivy.Index.open(str(path))
            index.config_reader("manual")  # nothing here ever changes
            _register(index)
            self.schema, self._searcher = index.schema, index.searcher()

    @property
    def num_documents(self) -> int:
        """Documents in the shard."""
        return int(self._searcher.num_docs)

    def document_frequency(self, field: str, term: str) -> int:
        """In how many documents a term stands."""
        with _engine(self._directory):
            return int(self._searcher.doc_freq(field, term))

    def best(self, query: tantivy.Query, limit: int) -> tuple[int, list[FullTextHit]]:
        """(how many documents match, the best `limit` of them); of equal scores the first in the index first."""
        with _engine(self._directory):
            found = self._searcher.search(query, limit=max(1, limit), count=True)
            return self._hits(found, limit, scored=True)

    def first(self, query: tantivy.Query, limit: int, *, last: bool = False) -> tuple[int, list[FullTextHit]]:
        """(how many documents match, the first `limit` of them in the shard's order, or the last ones from the end)."""
        order = tantivy.Order.Desc if last else tantivy.Order.Asc
        with _engine(self._directory):
            found = self._searcher.search(query, limit=max(1, limit), count=True, order_by_field="unit", order=order)
            return self._hits(found, limit, scored=False)

    def _hits(self, found: tantivy.SearchResult, limit: int, *, scored: bool) -> tuple[int, list[FullTextHit]]:
        hits = found.hits[:limit]
        units = (
            self._searcher.fast_field_values("unit", [place for _, place in hits])
            if scored
            else [unit for unit, _ in hits]
        )
        scores = [score if scored else None for score, _ in hits]
        return int(found.count), [  # type: ignore[attr-defined]  # missing in the stubs
            FullTextHit(unit=int(unit), score=score)  # type: ignore[arg-type]  # every document has a unit
            for unit, score in zip(units, scores, strict=True)
        ]

    def aggregate(self, query: tantivy.Query, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Aggregations over the documents that match, in the engine's form."""
        with _engine(self._directory):
            return self._searcher.aggregate(query, dict(wanted))


@contextlib.contextmanager
def _lockable(directory: Path) -> Iterator[Path]:
    """The directory, or links to its files in another one: the engine makes a lock file where it opens an index.

    It maps the files when it opens them, so the links may go.
    """
    if os.access(directory, os.W_OK):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="kiseki-") as scratch:
        for file in (file for file in directory.iterdir() if file.suffix != ".lock"):
            (Path(scratch) / file.name).symlink_to(file.resolve())
        yield Path(scratch)


@contextlib.contextmanager
def _engine(directory: Path) -> Iterator[None]:
    """A panic of the engine is no Exception; it becomes one. So does what it cannot read."""
    try:
        yield
    except ValueError as error:
        if "max expansions" in str(error):
            raise QueryError(
                "a prefix that follows other terms has too many continuations; give it more letters"
            ) from error
        raise FullTextDamage(f"{directory}: the full text does not read: {error}") from error
    except OSError as error:
        raise FullTextDamage(f"{directory}: the full text does not read: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise FullTextDamage(f"{directory}: the full text does not read: {error}") from error
