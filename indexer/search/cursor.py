"""Where a page of a search ends.

Sorted by relevance, a cursor is an offset, since scores have no place of their own; it is bounded. Sorted by step, it is the
last hit's place, and the next page begins there however far it is. A cursor holds for the question and the generation that
it came from.
"""

from dataclasses import dataclass
from typing import cast

from indexer.answers.cursor import CursorError, Values, decode_cursor, encode_cursor

__all__ = ["HitPlace", "SearchCursor"]

NAME, VERSION = "search", 1
OFFSET_ALONE, WITH_PLACE = (int, str, int), (int, str, int, int, str, int)


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class HitPlace:
    """A hit's place in the order of steps; shards of one step by name, that is by attempt."""

    global_step: int
    shard: str
    unit: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchCursor:
    """offset: hits before this page. after: the hit before it, where hits are sorted by step."""

    offset: int = 0
    after: HitPlace | None = None

    def encode(self, generation: int, question: str) -> str:
        """The cursor for a client. question: a fingerprint of it."""
        place: Values = () if self.after is None else (self.after.global_step, self.after.shard, self.after.unit)
        return encode_cursor(NAME, VERSION, (generation, question, self.offset, *place))

    @classmethod
    def decode(cls, text: str, generation: int, question: str) -> "SearchCursor":
        """Raises CursorError for a cursor of another question or generation, or none at all."""
        values = decode_cursor(text, NAME, VERSION, [OFFSET_ALONE, WITH_PLACE])
        of_generation, of_question, offset, *place = values
        if of_generation != generation:
            raise CursorError(
                f"cursor: it is of generation {of_generation}, the index is now at {generation}; search again from the start"
            )
        if of_question != question:
            raise CursorError("cursor: it is of another query, sort or selection; search again from the start")
        after = None
        if place:
            global_step, shard, unit = cast("tuple[int, str, int]", tuple(place))
            after = HitPlace(global_step=global_step, shard=shard, unit=unit)
        return cls(offset=cast("int", offset), after=after)
