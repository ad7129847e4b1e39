"""A query cut into tokens, each with the character where it begins."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from train_hooks.export_format.errors import QuerySyntaxError

__all__ = ["FIELDS", "MAX_QUERY_CHARACTERS", "Token", "TokenKind", "tokens_of"]

MAX_QUERY_CHARACTERS = 10_000
FIELDS = ("text", "ids", "ngram", "source", "document", "step", "dp_rank", "attempt", "status")
_FIELD = re.compile(r"([^\s()\":~*\[\]]+):")
_WORD = re.compile(r"[^\s()\"]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"[0-9]{1,9}")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_LIST = re.compile(r"\[([^\]\[]*)\]")


class TokenKind(StrEnum):
    """Kinds of tokens; the value is what an error message calls them."""

    OPEN = "("
    CLOSE = ")"
    AND = "AND"
    OR = "OR"
    NOT = "NOT"
    PLUS = "+"
    MINUS = "-"
    FIELD = "a field"
    WORD = "a word"
    QUOTED = "quoted text"
    LIST = "a list of token ids"
    TILDE = "~"
    END = "the end"


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """`text`: the word, what stands between the quotation marks or brackets, the field's name, the number after ~."""

    kind: TokenKind
    text: str
    position: int


def tokens_of(query: str) -> Iterator[Token]:
    """The query's tokens, END last. Raises QuerySyntaxError where a quotation mark or a bracket is left open."""
    if len(query) > MAX_QUERY_CHARACTERS:
        raise QuerySyntaxError(
            f"expected at most {MAX_QUERY_CHARACTERS:,} characters of query, found {len(query):,}", query, None
        )
    if (surrogate := _SURROGATE.search(query)) is not None:
        raise QuerySyntaxError("expected text, found half a character", query, surrogate.start())
    position, value_of = 0, ""
    while True:
        while not value_of and position < len(query) and query[position].isspace():
            position += 1
        token, position = _next(query, position, value_of)
        yield token
        if token.kind is TokenKind.END:
            return
        value_of = token.text if token.kind is TokenKind.FIELD else ""


def _next(query: str, position: int, value_of: str) -> tuple[Token, int]:
    """The token at `position`, and where it ends. `value_of`: the field whose value stands here, or nothing."""
    if position == len(query):
        return Token(kind=TokenKind.END, text="", position=position), position
    first = query[position]
    if first in "()":
        return Token(kind=TokenKind(first), text=first, position=position), position + 1
    if first == '"':
        return _quoted(query, position)
    if value_of:
        return _list(query, position) if first == "[" else _word(query, position, is_value=True)
    follows = query[position + 1 : position + 2]
    if first in "+-" and follows and not follows.isspace() and follows != ")":
        return Token(kind=TokenKind(first), text=first, position=position), position + 1
    if (name := _FIELD.match(query, position)) is not None:
        return _field(query, name)
    return _word(query, position)


def _quoted(query: str, position: int) -> tuple[Token, int]:
    found = _QUOTED.match(query, position)
    if found is None:
        raise QuerySyntaxError("expected a second quotation mark, found the end", query, position)
    text = re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL)
    return Token(kind=TokenKind.QUOTED, text=text, position=position), found.end()


def _list(query: str, position: int) -> tuple[Token, int]:
    found = _LIST.match(query, position)
    if found is None:
        raise QuerySyntaxError("expected a closing bracket, found the end", query, position)
    return Token(kind=TokenKind.LIST, text=found[1], position=position), found.end()


def _field(query: str, name: re.Match[str]) -> tuple[Token, int]:
    if name[1] not in FIELDS:
        raise QuerySyntaxError(
            f"there is no field {name[1][:40]!r}; the fields are {', '.join(FIELDS)}; quote text that holds a colon",
            query,
            name.start(),
        )
    if name.end() == len(query) or query[name.end()].isspace() or query[name.end()] in "()":
        raise QuerySyntaxError(f"expected a value right after {name[1]}:, found none", query, name.end())
    return Token(kind=TokenKind.FIELD, text=name[1], position=name.start()), name.end()


def _word(query: str, position: int, *, is_value: bool = False) -> tuple[Token, int]:
    if query[position] == "~" and not is_value and position and query[position - 1] == '"':
        number = _NUMBER.match(query, position + 1)
        if number is None:
            raise QuerySyntaxError("expected a number after ~", query, position)
        return Token(kind=TokenKind.TILDE, text=number[0], position=position), number.end()
    found = _WORD.match(query, position)
    assert found is not None
    kind = TokenKind(found[0]) if found[0] in ("AND", "OR", "NOT") and not is_value else TokenKind.WORD
    return Token(kind=kind, text=found[0], position=position), found.end()
