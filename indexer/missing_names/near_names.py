"""The error for a source or document that is not there: it names near ones, and looks at few shards for them."""

import difflib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from indexer.reader import IndexReader
from indexer.selection.visibility import Visibility
from indexer.storage.shard import Shard
from train_hooks.export_format.errors import QueryError

__all__ = ["no_such_document"]

NUM_SHARDS, NUM_ALIKE, NUM_NAMES = 3, 500, 3


def no_such_document(reader: IndexReader, document: tuple[str, str], visibility: Visibility) -> QueryError:
    """What to raise for it. Names come from the NUM_SHARDS newest shards; nothing hidden is named."""
    source, document_id = document
    tables = [_visible_names(reader, shard, visibility) for shard in reader.shards[-NUM_SHARDS:]]
    sources = sorted({name for table in tables for name in table.column("source").unique().to_pylist()})
    if source not in sources:
        near = difflib.get_close_matches(source, sources, NUM_NAMES) or sources[:5]
        return QueryError(f"there is no source {source!r}{_seen_in(reader)}; {_are(near)}")
    names = pa.concat_tables(tables)
    same_id = names.filter(pa.compute.equal(names.column("document_id"), document_id)).column("source").unique()
    if len(same_id):
        holders = " and ".join(sorted(same_id.to_pylist()))
        return QueryError(f"source {source} has no document {document_id!r}, but {holders} has one")
    ids = names.filter(pa.compute.equal(names.column("source"), source)).column("document_id")
    return QueryError(
        f"source {source} has no document {document_id!r}; {_are(_nearest(document_id, ids))}{_seen_in(reader)}"
    )


def _seen_in(reader: IndexReader) -> str:
    few = len(reader.shards) > NUM_SHARDS
    return f" (in the {NUM_SHARDS} newest of {len(reader.shards):,} shards)" if few else ""


def _are(near: Sequence[str]) -> str:
    return f"near: {', '.join(repr(name) for name in near)}" if near else "nothing is near"


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
        if pa.compute.any(pa.compute.starts_with(names, name[:middle])).as_py():
            shortest = middle
        else:
            longest = middle - 1
    alike = names.filter(pa.compute.starts_with(names, name[:shortest])).slice(0, NUM_ALIKE).unique().to_pylist()
    return difflib.get_close_matches(name, alike, NUM_NAMES, cutoff=0.5) or alike[:NUM_NAMES]
