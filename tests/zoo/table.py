"""The table of all loops. A module of loops fills it as it is imported."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.zoo.job import Job

__all__ = ["LOOPS", "Expect", "Loop", "loop"]

Expect = Literal["exact", "refused", "either"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Loop:
    """An ordinary training loop, and what its record must be.

    expect: `exact`; `refused`, with an error that names the step; or `either`, where both keep the promise that the
    record is never silently wrong. matched: the one word that all of its rows have, or `any`. evidence: name of a tensor → its
    evidence in all rows; other tensors have `forward` where a forward got them, else `loader`. gaps: steps that are
    recorded as absent. warns: a warning that the loop must give.
    """

    name: str
    run: Callable[..., object]
    given: Mapping[str, Any] = field(default_factory=dict)
    expect: Expect = "exact"
    matched: str = "whole"
    evidence: Mapping[str, str] = field(default_factory=dict)
    gaps: tuple[int, ...] = ()
    warns: str | None = None

    def train(self, job: Job) -> None:
        """Run it."""
        self.run(job, **self.given)


LOOPS: dict[str, Loop] = {}


def loop(
    expect: Expect,
    *,
    matched: str = "whole",
    evidence: Mapping[str, str] | None = None,
    gaps: tuple[int, ...] = (),
    warns: str | None = None,
    **given: Any,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Put a loop into the table; several times for one that has parameters, which are `given`."""

    def register(run: Callable[..., None]) -> Callable[..., None]:
        parameters = ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in given.items())
        name = f"{run.__name__}[{parameters}]" if parameters else run.__name__
        assert name not in LOOPS, name
        LOOPS[name] = Loop(
            name=name, run=run, given=given, expect=expect, matched=matched, evidence=evidence or {}, gaps=gaps,
            warns=warns,
        )  # fmt: skip
        return run

    return register
