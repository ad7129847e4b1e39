"""What a proof comes to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Outcome"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """figure: what was counted, by name. failures: one line for each thing that does not hold, with how to see it again."""

    figure: Mapping[str, int]
    failures: Sequence[str]
