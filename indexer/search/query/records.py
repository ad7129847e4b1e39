"""What a query says, as records. `position`: the character of the query where it stands; it counts for no comparison."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["And", "Fuzzy", "Ids", "Ngram", "Node", "Not", "NumberRange", "Or", "Phrase", "Prefix", "Value", "Word"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Word:
    """Text without quotation marks: its terms stand next to each other."""

    text: str
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Phrase:
    """Quoted text: its terms, in order, moved by `slop` positions at most."""

    text: str
    slop: int = 0
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix:
    """A word whose last term may go on."""

    text: str
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fuzzy:
    """A term with at most `distance` letters added, left out, changed, or swapped with a neighbour."""

    text: str
    distance: int
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ids:
    """Token ids next to each other."""

    token_ids: tuple[int, ...]
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ngram:
    """The tokens of a text, as it stands and as if a space stood before it."""

    text: str
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberRange:
    """low ≤ value < high; None: no bound."""

    name: Literal["step", "dp_rank", "attempt"]
    low: int | None
    high: int | None
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Value:
    """A field that has exactly this value."""

    name: Literal["source", "document", "status"]
    value: str
    position: int = field(default=0, compare=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class Not:
    """All segments but those of `child`."""

    child: "Node"


@dataclass(frozen=True, kw_only=True, slots=True)
class And:
    """Segments of every child."""

    children: tuple["Node", ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Or:
    """Segments of at least one child."""

    children: tuple["Node", ...]


Leaf = Word | Phrase | Prefix | Fuzzy | Ids | Ngram | NumberRange | Value
Node = Leaf | Not | And | Or


def leaves(node: Node, *, negated: bool = False) -> Iterator[tuple[Leaf, bool]]:
    """Every leaf, from left to right, and whether an odd number of NOTs stands over it."""
    if isinstance(node, Not):
        yield from leaves(node.child, negated=not negated)
    elif isinstance(node, And | Or):
        for child in node.children:
            yield from leaves(child, negated=negated)
    else:
        yield node, negated
