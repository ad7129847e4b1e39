"""Where a page of a search ends, as text that asks for the next one.

Sorted by relevance, a cursor is an offset, since scores have no place of their own; it is bounded. Sorted by step, it is the
last hit's place, and the next page begins there however far it is. A cursor holds for the question and the generation that
it came from.
"""

import hashlib
from dataclasses import dataclass

from train_hooks.export_format.errors import QueryError

__all__ = ["Cursor", "Place"]


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Place:
    """A hit's place in the order of steps; shards of one step by name, that is by attempt."""

    global_step: int
    shard: str
    unit: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """offset: hits before this page. after: the hit before it, where hits are sorted by step."""

    offset: int = 0
    after: Place | None = None

    def text(self, generation: int, question: str) -> str:
        """The cursor for a client."""
        place = "" if self.after is None else f".{self.after.global_step}.{self.after.unit}.{self.after.shard}"
        return f"{generation}.{_digest(question)}.{self.offset}{place}"

    @classmethod
    def of_text(cls, text: str, generation: int, question: str) -> "Cursor":
        """Raises QueryError for a cursor of another question or generation, or none at all."""
        parts = text.split(".")
        numbers = (parts[0], *parts[2:5])
        if len(parts) not in (3, 6) or not all(_is_number(part) for part in numbers):
            raise QueryError(f"cursor: expected one that a search gave, found {text[:60]!r}")
        if int(parts[0]) != generation:
            raise QueryError(
                f"cursor: it is of generation {parts[0]}, the index is now at {generation}; search again from the start"
            )
        if parts[1] != _digest(question):
            raise QueryError("cursor: it is of another query, sort or selection; search again from the start")
        after = None if len(parts) == 3 else Place(global_step=int(parts[3]), unit=int(parts[4]), shard=parts[5])
        return cls(offset=int(parts[2]), after=after)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()[:12]
