"""A range of steps of one attempt: what a shard, and a part of the catalog, covers."""

from dataclasses import dataclass

__all__ = ["StepRange"]


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class StepRange:
    """Steps `first_step` to `last_step`, both included, of one attempt, and their size: tokens, unless said otherwise."""

    attempt: int
    first_step: int
    last_step: int
    size: int
