"""Recursive descent over the tokens of a query. The grammar is that of docs/query_language.md, rule by rule:

    query   = any ;
    any     = all , { "OR" , all } ;
    all     = unary , { [ "AND" ] , unary } ;
    unary   = { "NOT" | "-" | "+" } , primary ;
    primary = "(" , any , ")" | phrase | word | field ;

Limits keep every query cheap: characters (`lexer`), depth, clauses, those that stand for many terms, slop; terms of a phrase
are limited where they are made (`patterns`).
"""

import re

from indexer.search.query.lexer import Token, TokenKind, tokens_of
from indexer.search.query.records import And, Fuzzy, Ids, Ngram, Node, Not, NumberRange, Or, Phrase, Prefix, Value, Word
from train_hooks.export_format.errors import QuerySyntaxError

__all__ = ["MAX_CLAUSES", "MAX_DEPTH", "MAX_EXPANDED", "MAX_SLOP", "parse"]

MAX_DEPTH, MAX_CLAUSES, MAX_EXPANDED, MAX_SLOP, MAX_DISTANCE = 32, 64, 8, 20, 2
MAX_NUMBER = (1 << 63) - 1
_FUZZY = re.compile(r"(.+)~([0-9]*)", re.DOTALL)
_COMPARISON = re.compile(r"(>=|<=|>|<)?(\d+)")
_BETWEEN = re.compile(r"(\d*)\.\.(\d*)")
_STARTS = (
    TokenKind.OPEN,
    TokenKind.NOT,
    TokenKind.PLUS,
    TokenKind.MINUS,
    TokenKind.FIELD,
    TokenKind.WORD,
    TokenKind.QUOTED,
)


def parse(query: str) -> Node:
    """What a query says. Raises QuerySyntaxError, which shows the place, for one that is none or is beyond the limits."""
    if not query.strip():
        raise QuerySyntaxError("expected a query, found none", query, None)
    parser = _Parser(query)
    node = parser.any(0)
    if parser.token.kind is not TokenKind.END:
        raise parser.wrong("found ) without (")
    return node


class _Parser:
    """The tokens, the next one, and how many clauses there were so far."""

    def __init__(self, query: str) -> None:
        self._query = query
        self._tokens = tokens_of(query)
        self._num_clauses = self._num_expanded = 0
        self.token = next(self._tokens)

    def wrong(self, what: str, position: int | None = None) -> QuerySyntaxError:
        return QuerySyntaxError(what, self._query, self.token.position if position is None else position)

    def _take(self) -> Token:
        taken = self.token
        if taken.kind is not TokenKind.END:
            self.token = next(self._tokens)
        return taken

    def any(self, depth: int) -> Node:
        children = [self._all(depth)]
        while self.token.kind is TokenKind.OR:
            self._take()
            children.append(self._all(depth))
        return children[0] if len(children) == 1 else Or(children=tuple(children))

    def _all(self, depth: int) -> Node:
        children = [self._unary(depth)]
        while self.token.kind is TokenKind.AND or self.token.kind in _STARTS:
            if self.token.kind is TokenKind.AND:
                self._take()
            children.append(self._unary(depth))
        return children[0] if len(children) == 1 else And(children=tuple(children))

    def _unary(self, depth: int) -> Node:
        negated, sign = False, None
        while self.token.kind in (TokenKind.NOT, TokenKind.MINUS, TokenKind.PLUS):
            if sign is not None and self.token.kind is not TokenKind.NOT:
                raise self.wrong(f"found {self.token.text} right after {sign.text}; quote text that begins with a sign")
            taken = self._take()
            sign = taken if taken.kind is not TokenKind.NOT else None
            negated ^= taken.kind is not TokenKind.PLUS
        node = self._primary(depth)
        return Not(child=node) if negated else node

    def _primary(self, depth: int) -> Node:
        taken = self._take()
        if taken.kind is TokenKind.OPEN:
            if depth == MAX_DEPTH:
                raise self.wrong(f"expected parentheses at most {MAX_DEPTH} deep", taken.position)
            node = self.any(depth + 1)
            if self.token.kind is not TokenKind.CLOSE:
                raise self.wrong("expected ) for this (, found the end", taken.position)
            self._take()
            return node
        self._num_clauses += 1
        if self._num_clauses > MAX_CLAUSES:
            raise self.wrong(f"expected at most {MAX_CLAUSES} clauses", taken.position)
        if taken.kind is TokenKind.QUOTED:
            return Phrase(text=taken.text, slop=self._slop(), position=taken.position)
        if taken.kind is TokenKind.WORD:
            return self._word(taken)
        if taken.kind is TokenKind.FIELD:
            return self._field(taken)
        found = "the end" if taken.kind is TokenKind.END else taken.text
        raise self.wrong(
            f"expected a word, a phrase, a field or (, found {found}; quote AND, OR and NOT where they are words",
            taken.position,
        )

    def _slop(self) -> int:
        if self.token.kind is not TokenKind.TILDE:
            return 0
        slop = int(self.token.text)
        if slop > MAX_SLOP:
            raise self.wrong(f"expected a slop of at most {MAX_SLOP}, found {slop}")
        self._count_expanded(self._take())
        return slop

    def _word(self, taken: Token) -> Node:
        text = taken.text
        if (fuzzy := _FUZZY.fullmatch(text)) is not None:
            distance = int(fuzzy[2][:9] or "1")
            if not 1 <= distance <= MAX_DISTANCE:
                raise self.wrong(f"expected ~1 or ~{MAX_DISTANCE} after a word, found ~{fuzzy[2][:20]}", taken.position)
            self._count_expanded(taken)
            return Fuzzy(text=fuzzy[1], distance=distance, position=taken.position)
        if "*" not in text:
            return Word(text=text, position=taken.position)
        if text.index("*") != len(text) - 1 or len(text) == 1:
            raise self.wrong("expected * at the end of a word alone; quote text that holds one", taken.position)
        self._count_expanded(taken)
        return Prefix(text=text[:-1], position=taken.position)

    def _count_expanded(self, taken: Token) -> None:
        self._num_expanded += 1
        if self._num_expanded > MAX_EXPANDED:
            raise self.wrong(
                f"expected at most {MAX_EXPANDED} prefixes, fuzzy words and phrases with ~", taken.position
            )

    def _field(self, field: Token) -> Node:
        value = self._take()
        if value.kind is TokenKind.LIST and field.text != "ids":
            raise self.wrong(f"expected a value of {field.text} without brackets", value.position)
        if field.text == "text":
            if value.kind is TokenKind.QUOTED:
                return Phrase(text=value.text, slop=self._slop(), position=value.position)
            return self._word(value)
        if self.token.kind is TokenKind.TILDE:
            raise self.wrong(f"expected no ~ after a value of {field.text}")
        if field.text == "ids":
            return self._ids(value)
        if field.text == "ngram":
            return Ngram(text=value.text, position=value.position)
        if field.text in ("source", "document", "status"):
            return Value(name=field.text, value=value.text, position=value.position)  # type: ignore[arg-type]
        return self._range(field, value)

    def _ids(self, value: Token) -> Node:
        parts = value.text.replace(",", " ").split()
        if value.kind is TokenKind.QUOTED or not all(
            part.isascii() and part.isdigit() and len(part) < 19 for part in parts
        ):
            raise self.wrong("expected token ids such as ids:[12 5 77] or ids:12", value.position)
        if not parts:
            raise self.wrong("expected at least one token id, found none", value.position)
        return Ids(token_ids=tuple(int(part) for part in parts), position=value.position)

    def _range(self, field: Token, value: Token) -> Node:
        text = value.text if value.text.isascii() and value.kind is TokenKind.WORD else ""
        low: int | None
        high: int | None
        if (comparison := _COMPARISON.fullmatch(text)) is not None:
            number = int(comparison[2][:20])
            low = {None: number, ">=": number, ">": number + 1}.get(comparison[1])
            high = {None: number + 1, "<": number, "<=": number + 1}.get(comparison[1])
        elif (between := _BETWEEN.fullmatch(text)) is not None and text != "..":
            low, high = (int(bound[:20]) if bound else None for bound in between.groups())
        else:
            raise self.wrong(
                f"expected numbers such as {field.text}:7, {field.text}:>=7, {field.text}:7..9 (9 not included)",
                value.position,
            )
        if max(low or 0, high or 0) > MAX_NUMBER:
            raise self.wrong(f"expected numbers up to {MAX_NUMBER}", value.position)
        return NumberRange(name=field.text, low=low, high=high, position=value.position)  # type: ignore[arg-type]
