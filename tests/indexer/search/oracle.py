"""What a search must find, by scanning: every segment's text is decoded and cut anew, with rules written a second time.

Letters of scripts without spaces are told by their Unicode names here, not by blocks.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from tokenizers import Tokenizer

from train_hooks.export_format.records import Row, Segment

_NAMES = (
    "CJK ", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC", "THAI", "LAO", "MYANMAR", "KHMER", "VERTICAL",
    "MASU", "HANGZHOU", "COMBINING KATAKANA",
)  # fmt: skip


@cache
def _kind(character: str) -> str:
    if unicodedata.category(character)[0] not in "LNM" or "VARIATION SELECTOR" in unicodedata.name(character, ""):
        return " "
    return "1" if unicodedata.name(character, "").startswith(_NAMES) else "w"


def folded(text: str) -> str:
    """NFKC, case folding, NFKC."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def terms_by_hand(text: str) -> list[str]:
    """The text's terms, one character after the other."""
    terms: list[str] = []
    before = " "
    for character in folded(text):
        kind = _kind(character)
        if kind == "1" or (kind == "w" and before != "w"):
            terms.append(character)
        elif kind == "w":
            terms[-1] += character
        before = kind
    return terms


@dataclass(frozen=True, kw_only=True, slots=True)
class Scanned:
    """A segment as a scan of the export finds it."""

    key: tuple[str, int]
    attempt: int
    step: int
    dp_rank: int
    status: str
    source: str | None
    document: str | None
    tokens: tuple[int, ...]
    text: str
    terms: tuple[str, ...]

    def has_terms(self, wanted: Sequence[str]) -> bool:
        """Whether the terms stand next to each other."""
        return _has(self.terms, tuple(wanted))

    def has_tokens(self, wanted: Sequence[int]) -> bool:
        """Whether the token ids stand next to each other."""
        return _has(self.tokens, tuple(wanted))


def _has(whole: tuple[object, ...], part: tuple[object, ...]) -> bool:
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))


def scan(rows: Iterable[Row], tokenizer: Tokenizer | None) -> list[Scanned]:
    """Every segment, and what lies between segments."""
    found = []
    for row in rows:
        for start, end, segment in _stretches(row):
            tokens = tuple(row.tokens.tolist()[start:end])
            text = "" if tokenizer is None else tokenizer.decode(list(tokens), skip_special_tokens=False)
            found.append(
                Scanned(
                    key=(str(row.address), start),
                    attempt=row.address.attempt,
                    step=row.address.global_step,
                    dp_rank=row.address.dp_rank,
                    status=row.status,
                    source=None if segment is None else segment.source,
                    document=None if segment is None else segment.document_id,
                    tokens=tokens,
                    text=text,
                    terms=tuple(terms_by_hand(text)),
                )
            )
    return found


def _stretches(row: Row) -> list[tuple[int, int, Segment | None]]:
    found: list[tuple[int, int, Segment | None]] = []
    position = 0
    for segment in sorted(row.segments, key=lambda segment: segment.start):
        if segment.start > position:
            found.append((position, segment.start, None))
        found.append((segment.start, segment.start + segment.length, segment))
        position = segment.start + segment.length
    if position < len(row.tokens):
        found.append((position, len(row.tokens), None))
    return found
