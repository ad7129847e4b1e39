"""Which rows a question is about: steps, lineage, rank, source. As ordinals of a shard: a step range is one range of them.

What a key may not see, and what is taken down (`visibility`), is kept out of the same bitmaps.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from indexer.selection.visibility import EVERYTHING, Visibility, VisibleShard
from indexer.spans.arrays import SpanArrays
from indexer.spans.filters import Filter
from indexer.storage.arrow_columns import equals
from indexer.storage.shard import Shard
from train_hooks.export_format.errors import QueryError
from train_hooks.export_format.lineage import StepInterval

__all__ = ["SelectedShard", "Selection", "select_of_shard", "step_interval"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Rows of committed steps. The default is every exposure: applied steps on the canonical lineage.

    before_step: steps < before_step alone (a model checkpoint of step N has seen the steps before N + 1). first_step,
    last_step: both included. attempt: rows of this attempt, whether canonical or not. lineage: "all" takes superseded
    steps and steps without an update as well. dp_rank: rows of one data-parallel rank. source, document_id: hits that
    begin in a segment of it. visibility: what may be seen at all; hits that touch anything else do not count.
    """

    before_step: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    attempt: int | None = None
    lineage: Literal["canonical", "all"] = "canonical"
    dp_rank: int | None = None
    source: str | None = None
    document_id: str | None = None
    visibility: Visibility = field(default=EVERYTHING, repr=False)

    def __post_init__(self) -> None:
        for name in ("before_step", "first_step", "last_step", "attempt", "dp_rank"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise QueryError(f"{name}: expected a number ≥ 0, found {value}")
        if self.lineage not in ("canonical", "all"):
            raise QueryError(f"lineage: expected canonical or all, found {self.lineage!r}")
        if self.first_step is not None and self.last_step is not None and self.first_step > self.last_step:
            raise QueryError(f"steps: expected first ≤ last, found {self.first_step} to {self.last_step}")

    def to_json(self) -> dict[str, Any]:
        """Plain data. What is hidden from the asker is not named."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "visibility"}


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedShard:
    """A shard of which a selection takes something.

    The filter counts in units: sequences, or the stretches of one segment each with a source, a document or something
    hidden. `spans` has the units' boundaries in place of the sequences', and `unit_steps` i64 [num_units] the step of each
    unit, ascending. visible: None where nothing of the shard is hidden; else the filter passes hits that begin where it
    is visible, and `for_hits_of_length` those that are visible to their end.
    """

    shard: Shard
    spans: SpanArrays
    filter: Filter
    unit_steps: npt.NDArray[np.int64]
    visible: VisibleShard | None = None
    _by_length: dict[int, "SelectedShard"] = field(default_factory=dict, repr=False, compare=False)

    def for_hits_of_length(self, length: int) -> "SelectedShard":
        """The same for hits of `length` tokens, none of which is hidden."""
        if self.visible is None:
            return self
        if length not in self._by_length:
            self._by_length[length] = _visible_to_the_end(self, self.visible, length)
        return self._by_length[length]


def select_of_shard(
    shard: Shard, selection: Selection, canonical: Mapping[int, StepInterval], visible: VisibleShard | None = None
) -> SelectedShard | None:
    """What of `shard` is selected and visible, or None where nothing of it is."""
    steps = step_interval(shard, selection, canonical)
    if steps is None:
        return None
    first, last = (int(ordinal) for ordinal in np.searchsorted(shard.steps, [steps[0], steps[1] + 1]))
    passing = _passing_sequences(shard, selection)
    if selection.source is None and selection.document_id is None and visible is None:
        if first == last or (passing is not None and not passing[first:last].any()):
            return None
        chosen = Filter(first=first, last=last, passing=passing)
        return SelectedShard(shard=shard, spans=shard.spans, filter=chosen, unit_steps=shard.steps)
    return _select_segments(shard, selection, first, last, passing, visible)


def _visible_to_the_end(item: SelectedShard, visible: VisibleShard, length: int) -> SelectedShard:
    """Each stretch ends where a hit that begins in it would run into something hidden."""
    limits = visible.ends_of_starts(length)
    inside = limits[(limits > visible.starts[:-1]) & (limits < visible.starts[1:])]
    starts = np.insert(visible.starts, np.searchsorted(visible.starts, inside), inside)
    unit = np.searchsorted(visible.starts, starts[:-1], side="right") - 1
    passing = starts[:-1] < limits[unit]
    if item.filter.passing is not None:
        passing &= item.filter.passing[unit].astype(np.bool_)
    begin, end = (int(place) for place in np.searchsorted(unit, [item.filter.first, item.filter.last or 0]))
    return SelectedShard(
        shard=item.shard,
        spans=dataclasses.replace(item.spans, sequence_starts=starts),
        filter=Filter(first=begin, last=end, passing=passing),
        unit_steps=item.unit_steps[unit],
    )


def step_interval(shard: Shard, selection: Selection, canonical: Mapping[int, StepInterval]) -> tuple[int, int] | None:
    """First and last step, both included, that `selection` takes of `shard`; None where it takes none."""
    first, last = shard.info.first_step, shard.info.last_step
    if selection.attempt is not None and shard.info.attempt != selection.attempt:
        return None
    if selection.attempt is None and selection.lineage == "canonical":
        interval = canonical.get(shard.info.attempt)
        if interval is None:
            return None
        first = max(first, interval.first_step)
        last = last if interval.last_step is None else min(last, interval.last_step)
    if selection.before_step is not None:
        last = min(last, selection.before_step - 1)
    first = max(first, selection.first_step if selection.first_step is not None else first)
    last = min(last, selection.last_step if selection.last_step is not None else last)
    return (first, last) if first <= last else None


def _passing_sequences(shard: Shard, selection: Selection) -> npt.NDArray[np.bool_] | None:
    """By ordinal, or None where every sequence passes."""
    passing = None
    if selection.lineage == "canonical" and not shard.applied.all():
        passing = shard.applied
    if selection.dp_rank is not None:
        of_rank = shard.dp_ranks == selection.dp_rank
        passing = of_rank if passing is None else passing & of_rank
    return passing


def _select_segments(
    shard: Shard,
    selection: Selection,
    first: int,
    last: int,
    passing: npt.NDArray[np.bool_] | None,
    visible: VisibleShard | None,
) -> SelectedShard | None:
    units = shard.units if visible is None else visible
    chosen = np.ones(len(units.segment), np.bool_) if visible is None else visible.visible.copy()
    for name, wanted in (("source", selection.source), ("document_id", selection.document_id)):
        if wanted is not None:
            same = equals(shard.segments.column(name), wanted)
            chosen &= (units.segment >= 0) & (same[units.segment] if len(same) else False)
    if passing is not None:
        chosen &= passing[units.ordinal]
    begin, end = (int(unit) for unit in np.searchsorted(units.ordinal, [first, last]))
    if not chosen[begin:end].any():
        return None
    return SelectedShard(
        shard=shard,
        spans=dataclasses.replace(shard.spans, sequence_starts=units.starts),
        filter=Filter(first=begin, last=end, passing=chosen),
        unit_steps=shard.steps[units.ordinal],
        visible=visible,
    )
