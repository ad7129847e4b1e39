"""What a question asks for by name and the index does not have: an answer of none should say so, and what there is instead.

Nothing is said of an index of which a shard cannot be opened: what is asked for may be in it.
"""

import dataclasses

import numpy as np
import pyarrow.compute as pc

from indexer.missing_names.near_names import no_such_document
from indexer.reader import IndexReader
from indexer.selection.rows import Selection, step_interval
from indexer.storage.document_index import document_key
from train_hooks.export_format.errors import QueryError

__all__ = ["absent", "require_step"]

SHOWN = 16


def require_step(reader: IndexReader, selection: Selection, step: int) -> None:
    """Raises QueryError for a step behind the last that is indexed of the selected attempt or lineage."""
    whole = dataclasses.replace(selection, before_step=None, first_step=None, last_step=None)
    found = [step_interval(shard, whole, reader.canonical) for shard in reader.shards]
    intervals = [interval for interval in found if interval is not None]
    if not intervals or reader.failed:
        return
    first, last = min(first for first, _ in intervals), max(last for _, last in intervals)
    if step > last:
        raise QueryError(
            f"expected a step that is indexed, {first} to {last}, found {step}; `kiseki index` takes in what the export has "
            "by now"
        )


def absent(reader: IndexReader, selection: Selection) -> QueryError | None:
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
        try:
            require_step(reader, selection, selection.first_step)
        except QueryError as error:
            return error
    return _absent_document(reader, selection)


def _absent_document(reader: IndexReader, selection: Selection) -> QueryError | None:
    source, document_id = selection.source, selection.document_id
    visibility = reader.visible_under(selection.visibility)
    if source is not None and not _is_there(reader, "source", source):
        return no_such_document(reader, (source, document_id or ""), visibility)
    if document_id is None:
        return None
    if source is None:
        there = _is_there(reader, "document_id", document_id)
        return None if there else QueryError(f"no source has a document {document_id!r}")
    key = document_key(source, document_id)
    there = any(len(shard.documents.find(key)) for shard in reader.shards)
    return None if there else no_such_document(reader, (source, document_id), visibility)


def _is_there(reader: IndexReader, column: str, name: str) -> bool:
    return any(bool(pc.any(pc.equal(shard.segments.column(column), name)).as_py()) for shard in reader.shards)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:SHOWN])) + (" …" if len(numbers) > SHOWN else "")
