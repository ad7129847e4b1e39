"""Which rows a question is about: steps, lineage, rank. As ordinals of a shard, since a step range is one range of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from indexer.shard import Shard
from indexer.spans.filters import Filter
from train_hooks.export_format.errors import QueryError
from train_hooks.export_format.lineage import StepInterval

__all__ = ["Selection", "shard_filter"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Rows of committed steps. The default is every exposure: applied steps on the canonical lineage.

    before_step: steps < before_step alone (a model checkpoint of step N has seen the steps before N + 1). first_step,
    last_step: both included. attempt: rows of this attempt, whether canonical or not. lineage: "all" takes superseded
    steps and steps without an update as well. dp_rank: rows of one data-parallel rank.
    """

    before_step: int | None = None
    first_step: int | None = None
    last_step: int | None = None
    attempt: int | None = None
    lineage: Literal["canonical", "all"] = "canonical"
    dp_rank: int | None = None

    def __post_init__(self) -> None:
        for name in ("before_step", "first_step", "last_step", "attempt", "dp_rank"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise QueryError(f"{name}: expected a number ≥ 0, found {value}")
        if self.lineage not in ("canonical", "all"):
            raise QueryError(f"lineage: expected canonical or all, found {self.lineage!r}")
        if self.first_step is not None and self.last_step is not None and self.first_step > self.last_step:
            raise QueryError(f"steps: expected first ≤ last, found {self.first_step} to {self.last_step}")


def shard_filter(shard: Shard, selection: Selection, canonical: Mapping[int, StepInterval]) -> Filter | None:
    """What of `shard` is selected, or None where nothing of it is."""
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
    if first > last:
        return None
    begin, end = (int(ordinal) for ordinal in np.searchsorted(shard.steps, [first, last + 1]))
    passing = None
    if selection.lineage == "canonical" and not shard.applied.all():
        passing = shard.applied
    if selection.dp_rank is not None:
        of_rank = shard.dp_ranks == selection.dp_rank
        passing = of_rank if passing is None else passing & of_rank
    if begin == end or (passing is not None and not passing[begin:end].any()):
        return None
    return Filter(first=begin, last=end, passing=passing)
