"""What may be seen: restricted sources and tombstones, as stretches of token positions that searches keep out of.

1. A hit counts if every token of it is visible. One that begins in a visible segment and runs into a hidden one does not:
   else hidden text could be guessed token by token.
2. What is hidden is in no count, step, rank, bin, hit, context, document, sequence view or token frequency.
3. Tokens without a segment have the source "": an allow-list hides them unless it names it.
4. Tokens stay where they are. Addresses, offsets and lengths of sequences are no secret.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from indexer.storage.arrow_columns import is_among
from indexer.storage.distinct import distinct
from indexer.storage.shard import Shard
from train_hooks.export_format.records import SequenceAddress

__all__ = ["EVERYTHING", "Visibility", "VisibleShard", "visible_shard"]

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Visibility:
    """What is hidden. sources: the only ones that may be seen, None for all; the hidden ones go from those.

    hidden_spans: (address, start, end) in tokens of the sequence.
    """

    sources: frozenset[str] | None = None
    hidden_sources: frozenset[str] = frozenset()
    hidden_rows: frozenset[SequenceAddress] = frozenset()
    hidden_documents: frozenset[tuple[str, str]] = frozenset()
    hidden_spans: frozenset[tuple[SequenceAddress, int, int]] = frozenset()

    def __and__(self, other: "Visibility") -> "Visibility":
        """What is visible under both."""
        if other == EVERYTHING:
            return self
        sources = other.sources if self.sources is None else self.sources
        if self.sources is not None and other.sources is not None:
            sources = self.sources & other.sources
        return Visibility(
            sources=sources,
            hidden_sources=self.hidden_sources | other.hidden_sources,
            hidden_rows=self.hidden_rows | other.hidden_rows,
            hidden_documents=self.hidden_documents | other.hidden_documents,
            hidden_spans=self.hidden_spans | other.hidden_spans,
        )


EVERYTHING = Visibility()


@dataclass(frozen=True, kw_only=True, slots=True)
class VisibleShard:
    """A shard's token positions cut into k stretches, each wholly visible or wholly hidden.

    starts i64 [k + 1]; ordinal i64 [k]: the sequence; segment i64 [k]: row in `Shard.segments`, -1 for none; visible
    bool [k]; ends i64 [k]: where the visible tokens from this stretch on, in this sequence, end.
    """

    starts: Positions
    ordinal: Positions
    segment: Positions
    visible: npt.NDArray[np.bool_]
    ends: Positions = field(repr=False)

    def ends_of_starts(self, length: int) -> Positions:
        """For each stretch the end of the positions in it from which `length` tokens are visible, i64 [k]."""
        fitting = np.minimum(self.starts[1:], self.ends - length + 1)
        return np.where(self.visible, np.maximum(fitting, self.starts[:-1]), self.starts[:-1])

    def are_visible(self, positions: Positions, length: int) -> npt.NDArray[np.bool_]:
        """Whether `length` tokens from each position on are visible."""
        stretch = np.searchsorted(self.starts, positions, side="right") - 1
        return self.visible[stretch] & (positions + length <= self.ends[stretch])

    def visible_lengths(self, sequence_starts: Positions) -> tuple[Positions, Positions]:
        """Ordinal and number of tokens, without separators, of each stretch in which something is seen."""
        lengths = np.minimum(self.starts[1:], sequence_starts[self.ordinal + 1] - 1) - self.starts[:-1]
        chosen = self.visible & (lengths > 0)
        return self.ordinal[chosen], lengths[chosen]

    def mask(self, begin: int, end: int) -> npt.NDArray[np.bool_]:
        """Whether each position of [begin, end) is visible, bool [end - begin]."""
        first, last = np.searchsorted(self.starts, [begin, end - 1], side="right") - 1
        edges = np.clip(self.starts[first : last + 2], begin, end)
        return np.repeat(self.visible[first : last + 1], np.diff(edges))


def visible_shard(shard: Shard, visibility: Visibility) -> VisibleShard | None:
    """What of a shard is visible; None where all of it is."""
    if visibility == EVERYTHING:
        return None
    units = shard.units
    spans = _hidden_ranges(shard, visibility)
    cuts = distinct(np.concatenate([units.starts[:-1], *(np.array(span) for span in spans)]))
    cuts = cuts[cuts < shard.spans.num_tokens].astype(np.int64)
    unit = np.searchsorted(units.starts, cuts, side="right") - 1
    ordinal, segment = units.ordinal[unit], units.segment[unit]
    visible = np.append(_visible_segments(shard, visibility), _is_allowed("", visibility))[segment]
    for begin, end in spans:
        visible &= (cuts < begin) | (cuts >= end)
    visible |= cuts == shard.spans.sequence_starts[ordinal + 1] - 1  # the separator, which no query can name
    if visible.all():
        return None
    starts = np.append(cuts, shard.spans.num_tokens).astype(np.int64)
    return VisibleShard(
        starts=starts, ordinal=ordinal, segment=segment, visible=visible, ends=_ends(starts, ordinal, visible)
    )


def _is_allowed(source: str, visibility: Visibility) -> bool:
    return (visibility.sources is None or source in visibility.sources) and source not in visibility.hidden_sources


def _visible_segments(shard: Shard, visibility: Visibility) -> npt.NDArray[np.bool_]:
    """By row of `Shard.segments`: whether its source and document are visible."""
    sources = shard.segments.column("source")
    visible = np.ones(shard.segments.num_rows, np.bool_)
    if visibility.sources is not None:
        visible &= is_among(sources, visibility.sources)
    if visibility.hidden_sources:
        visible &= ~is_among(sources, visibility.hidden_sources)
    if visibility.hidden_documents:
        documents = shard.segments.column("document_id")
        for source in {source for source, _ in visibility.hidden_documents}:
            ids = frozenset(name for of, name in visibility.hidden_documents if of == source)
            visible &= ~(is_among(sources, frozenset([source])) & is_among(documents, ids))
    return visible


def _hidden_ranges(shard: Shard, visibility: Visibility) -> list[tuple[int, int]]:
    """Position ranges of hidden rows and spans of this shard."""
    ranges = []
    wanted = [(address, 0, None) for address in visibility.hidden_rows]
    for address, start, end in [*wanted, *visibility.hidden_spans]:
        if address.run_id != shard.info.run_id or not (
            shard.info.first_step <= address.global_step <= shard.info.last_step
        ):
            continue
        ordinal = shard.ordinal_of(address)
        if ordinal is not None:
            begin, stop = (int(place) for place in shard.spans.sequence_starts[[ordinal, ordinal + 1]])
            last = stop if end is None else min(stop, begin + end)
            if begin + start < last:
                ranges.append((begin + start, last))
    return ranges


def _ends(starts: Positions, ordinal: Positions, visible: npt.NDArray[np.bool_]) -> Positions:
    stops = np.ones(len(visible), np.bool_)
    stops[:-1] = ~visible[1:] | (ordinal[1:] != ordinal[:-1])
    last = np.where(stops, np.arange(len(visible)), len(visible))
    return np.asarray(starts[np.minimum.accumulate(last[::-1])[::-1] + 1])
