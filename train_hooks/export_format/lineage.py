"""Which attempt contributed which steps to a model checkpoint: pure functions over attempt records.

Each attempt contributes the steps after its own resume step and up to the resume step of the next attempt on the chain.
The latest attempt that has committed a step decides what is canonical; an attempt that died before its first step
changes nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from train_hooks.export_format.errors import DamageError, InputError
from train_hooks.export_format.records import AttemptInfo

__all__ = ["StepInterval", "canonical_attempt", "lineage"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInterval:
    """Steps `first_step` to `last_step`, both included, of one attempt; `last_step` None means without end."""

    attempt: int
    first_step: int
    last_step: int | None

    def holds(self, attempt: int, global_step: int) -> bool:
        """Whether a step of an attempt lies in it."""
        return attempt == self.attempt and self.first_step <= global_step and (
            self.last_step is None or global_step <= self.last_step
        )  # fmt: skip


def canonical_attempt(last_steps: Mapping[int, int | None]) -> int | None:
    """The latest attempt with a committed step, given each attempt's newest one; None where nothing is committed."""
    return max((attempt for attempt, step in last_steps.items() if step is not None), default=None)


def lineage(attempts: Iterable[AttemptInfo], attempt: int, checkpoint_step: int | None = None) -> list[StepInterval]:
    """The intervals behind `attempt` (up to `checkpoint_step`), oldest first.

    Raises InputError for an attempt that is not there, DamageError where a parent is missing or names itself.
    """
    by_number = {info.attempt: info for info in attempts}
    if attempt not in by_number:
        raise InputError(f"there is no attempt {attempt}; expected one of {sorted(by_number)}")
    intervals: list[StepInterval] = []
    current: int | None = attempt
    last_step = checkpoint_step
    while current is not None:
        info = by_number.get(current)
        if info is None:
            raise DamageError(f"attempt {current} is named as a parent, and is missing")
        if info.parent_attempt is not None and info.parent_attempt >= current:
            raise DamageError(
                f"attempt {current} names attempt {info.parent_attempt} as its parent, which is not earlier"
            )
        if last_step is None or last_step > info.resume_step:
            intervals.append(StepInterval(attempt=current, first_step=info.resume_step + 1, last_step=last_step))
        last_step = info.resume_step if last_step is None else min(last_step, info.resume_step)
        current = info.parent_attempt
    return intervals[::-1]
