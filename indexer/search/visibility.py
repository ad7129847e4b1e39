"""What a search may see, as a query of the engine: a segment is found if every token of it is visible.

Sources are terms of the engine. Hidden documents, rows and spans are few; the units that they touch are left out by number.
Scores take how many visible segments hold a term, not how many there are.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import tantivy

from indexer.reader import IndexReader
from indexer.search.query.compiler import all_but, any_of, numbers_query, value_query
from indexer.selection.visibility import EVERYTHING, Visibility
from indexer.storage.shard import Shard

__all__ = ["visible_query"]


def visible_query(reader: IndexReader, shard: Shard, visibility: Visibility) -> tantivy.Query | None:
    """What is visible of a shard; None where nothing is hidden. `visibility` is as `visible_under` gave it."""
    if visibility == EVERYTHING:
        return None
    schema = shard.full_text.schema
    hidden = [_of_source(schema, source) for source in sorted(visibility.hidden_sources)]
    hidden += [numbers_query(schema, "unit", low, high) for low, high in _hidden_units(reader, shard, visibility)]
    seen = all_but(hidden)
    if visibility.sources is None:
        return seen
    allowed = any_of([_of_source(schema, source) for source in sorted(visibility.sources)])
    return tantivy.Query.boolean_query([(tantivy.Occur.Must, allowed), (tantivy.Occur.Must, seen)])


def _of_source(schema: tantivy.Schema, source: str) -> tantivy.Query:
    """Segments of a source; "" stands for tokens without a segment."""
    return (
        value_query(schema, "source", source)
        if source
        else all_but([tantivy.Query.regex_query(schema, "source", ".+")])
    )


def _hidden_units(reader: IndexReader, shard: Shard, visibility: Visibility) -> Iterator[tuple[int, int]]:
    """Runs [low, high) of units that hidden documents, rows and spans touch."""
    visible = reader.visible_shard(shard, replace(visibility, sources=None, hidden_sources=frozenset()))
    if visible is None:
        return
    starts = visible.starts[:-1][~visible.visible]
    units = np.unique(np.searchsorted(shard.units.starts, starts, side="right") - 1)
    cuts = np.flatnonzero(np.diff(units) > 1) + 1
    for run in np.split(units, cuts):
        if len(run):
            yield int(run[0]), int(run[-1]) + 1
