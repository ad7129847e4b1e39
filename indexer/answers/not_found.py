"""What a question asks for by name and the index does not have: an answer of none should say so, and what there is instead.

Nothing is said of an index of which a shard cannot be opened: what is asked for may be in it. Names that are near come from
few shards, and nothing hidden is named.
"""

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from indexer.reader import IndexReader
from indexer.selection.rows import Selection, step_interval
from indexer.selection.visibility import Visibility
from indexer.storage.arrow_columns import equals
from indexer.storage.document_index import document_key
from indexer.storage.shard import Shard
from train_hooks.export_format.errors import QueryError

__all__ = ["document_not_found_error", "not_found_error", "require_step"]

NUM_LISTED = 16
NUM_SHARDS, NUM_ALIKE, NUM_NAMES = 3, 500, 3


def require_step(reader: IndexReader, selection: Selection, step: int) -> None:
    """Raises QueryError for a step behind the last that is indexed of the selected attempt or lineage."""
    error = _step_not_found_error(reader, selection, step)
    if error is not None:
        raise error


def not_found_error(reader: IndexReader, selection: Selection) -> QueryError | None:
    """The error for an attempt, rank, step, source or document that no row of the index has; None where there are rows."""
    if reader.failed:
        return None
    attempts = sorted({shard.info.attempt for shard in reader.shards})
    if selection.attempt is not None and selection.attempt not in attempts:
        return QueryError(f"there is no attempt {selection.attempt}; there are: {_listed(attempts)}")
    if selection.dp_rank is not None:
        ranks = np.unique(np.concatenate([np.unique(shard.dp_ranks) for shard in reader.shards])).tolist()
        if selection.dp_rank not in ranks:
            return QueryError(f"there is no data-parallel rank {selection.dp_rank}; there are: {_listed(ranks)}")
    if selection.first_step is not None:
        error = _step_not_found_error(reader, selection, selection.first_step)
        if error is not None:
            return error
    return _name_not_found_error(reader, selection)


def document_not_found_error(reader: IndexReader, document: tuple[str, str], visibility: Visibility) -> QueryError:
    """The error for a (source, document id) that is not there. It names near ones of the NUM_SHARDS newest shards."""
    source, document_id = document
    tables = [_visible_names(reader, shard, visibility) for shard in reader.shards[-NUM_SHARDS:]]
    sources = sorted({name for table in tables for name in table.column("source").unique().to_pylist()})
    if source not in sources:
        near = difflib.get_close_matches(source, sources, NUM_NAMES) or sources[:5]
        return QueryError(f"there is no source {source!r}{_seen_in(reader)}; {_near(near)}")
    names = pa.concat_tables(tables)
    same_id = names.filter(pc.equal(names.column("document_id"), document_id)).column("source").unique()
    if len(same_id):
        holders = " and ".join(sorted(same_id.to_pylist()))
        return QueryError(f"source {source} has no document {document_id!r}, but {holders} has one")
    ids = names.filter(pc.equal(names.column("source"), source)).column("document_id")
    return QueryError(
        f"source {source} has no document {document_id!r}; {_near(_nearest(document_id, ids))}{_seen_in(reader)}"
    )


def _step_not_found_error(reader: IndexReader, selection: Selection, step: int) -> QueryError | None:
    all_steps = dataclasses.replace(selection, before_step=None, first_step=None, last_step=None)
    found = [step_interval(shard, all_steps, reader.canonical) for shard in reader.shards]
    intervals = [interval for interval in found if interval is not None]
    if not intervals or reader.failed:
        return None
    first, last = min(first for first, _ in intervals), max(last for _, last in intervals)
    if step <= last:
        return None
    return QueryError(
        f"expected a step that is indexed, {first} to {last}, found {step}; `kiseki index` takes in what the export has "
        "by now"
    )


def _name_not_found_error(reader: IndexReader, selection: Selection) -> QueryError | None:
    source, document_id = selection.source, selection.document_id
    visibility = reader.visible_under(selection.visibility)
    if source is not None and not _occurs(reader, "source", source):
        return document_not_found_error(reader, (source, document_id or ""), visibility)
    if document_id is None:
        return None
    if source is None:
        found = _occurs(reader, "document_id", document_id)
        return None if found else QueryError(f"no source has a document {document_id!r}")
    key = document_key(source, document_id)
    found = any(len(shard.documents.find(key)) for shard in reader.shards)
    return None if found else document_not_found_error(reader, (source, document_id), visibility)


def _occurs(reader: IndexReader, column: str, name: str) -> bool:
    return any(bool(equals(shard.segments.column(column), name).any()) for shard in reader.shards)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:NUM_LISTED])) + (" …" if len(numbers) > NUM_LISTED else "")


def _seen_in(reader: IndexReader) -> str:
    are_more = len(reader.shards) > NUM_SHARDS
    return f" (in the {NUM_SHARDS} newest of {len(reader.shards):,} shards)" if are_more else ""


def _near(names: Sequence[str]) -> str:
    return f"near: {', '.join(repr(name) for name in names)}" if names else "nothing is near"


def _visible_names(reader: IndexReader, shard: Shard, visibility: Visibility) -> pa.Table:
    names = shard.segments.select(["source", "document_id"])
    visible = reader.visible_shard(shard, visibility)
    if visible is None:
        return names
    return names.take(np.unique(visible.segment[visible.visible & (visible.segment >= 0)]))


def _nearest(name: str, names: pa.ChunkedArray) -> list[str]:
    """Of the names that begin like it for longest, those that look most like it."""
    shortest, longest = 0, len(name)
    while shortest < longest:
        middle = (shortest + longest + 1) // 2
        if pc.any(pc.starts_with(names, name[:middle])).as_py():
            shortest = middle
        else:
            longest = middle - 1
    alike = names.filter(pc.starts_with(names, name[:shortest])).slice(0, NUM_ALIKE).unique().to_pylist()
    return difflib.get_close_matches(name, alike, NUM_NAMES, cutoff=0.5) or alike[:NUM_NAMES]
