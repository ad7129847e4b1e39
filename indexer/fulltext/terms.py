"""What a term of the full text is: the one rule for indexing, for queries and for highlights.

A text is folded (Unicode NFKC, then case folding), then cut:

- A *term* is a longest run of letters, digits and marks: Unicode categories L, N and M. Everything else separates:
  `snake_case` is two terms, `don't` too, `3.14` too; `camelCase`, `utf8` and `HTTPServer` are one.
- In scripts that put no spaces between words (Chinese, Japanese, Korean, Thai, Lao, Burmese, Khmer) every character is a
  term, so that a phrase is any substring: 全文検索 finds 日本語の全文検索エンジン.
- Accents count: `café` is not `cafe`; a fuzzy term finds both. Full-width and half-width forms, ligatures and other
  compatibility forms are one (ＡＢＣ is abc, ｶﾞ is ガ, ① is 1). Marks that only select a glyph separate.

A term of more than MAX_TERM_BYTES is not indexed; it is no word of any language.

The engine is given texts in which a space stands on either side of every term, and cuts at spaces alone: what a term is
depends on this module, not on the engine's tables.
"""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_TERM_BYTES", "LocatedTerms", "located_terms", "spaced_terms", "terms_of"]

MAX_TERM_BYTES = 255
_SEPARATOR, _WORD, _SINGLE, _UNKNOWN = 0, 1, 2, 255
_SCRIPTS_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x19E0, 0x19FF), (0x2E80, 0x2FDF),
    (0x3005, 0x3007), (0x3021, 0x30FF), (0x3100, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xA960, 0xA97F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0xAC00, 0xD7FF), (0xF900, 0xFAFF), (0x16FF0, 0x1B2FF),
    (0x20000, 0x3347F),
)  # fmt: skip
_GLYPH_SELECTORS = ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xE0100, 0xE01EF))
_LAST_LETTER = 0x3347F
_JOINS_TO_PREVIOUS = ((0x1160, 0x11FF), (0x3131, 0x318E), (0xD7B0, 0xD7FF), (0xFF9E, 0xFFDC))
_ASCII_TERMS = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}


def _within(code: int, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= code <= last for first, last in ranges)


def _class_of(code: int) -> int:
    if unicodedata.category(chr(code))[0] not in "LNM" or code > _LAST_LETTER or _within(code, _GLYPH_SELECTORS):
        return _SEPARATOR
    return _SINGLE if _within(code, _SCRIPTS_WITHOUT_SPACES) else _WORD


_CLASSES = np.full(_LAST_LETTER + 2, _UNKNOWN, np.uint8)
_WIDTHS = np.full(0x110000, _UNKNOWN, np.uint8)
Codes = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]


def _code_points(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _looked_up(table: Bytes, codes: Codes, rule: Callable[[int], int]) -> Bytes:
    """The table's entry of each code point; one that is met for the first time is entered by the rule."""
    found = table[codes]
    unknown = found == _UNKNOWN
    if unknown.any():
        for code in np.unique(codes[unknown]).tolist():
            table[code] = rule(code)
        found = table[codes]
    return found


def _classes(codes: Codes) -> Bytes:
    return _looked_up(_CLASSES, np.minimum(codes, _LAST_LETTER + 1), _class_of)


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return folded if unicodedata.is_normalized("NFKC", folded) else unicodedata.normalize("NFKC", folded)


def spaced_terms(text: str) -> str:
    """The text's terms, in order, with at least one space between any two, and nothing but terms and spaces."""
    if text.isascii():
        return text.translate(_ASCII_TERMS)
    codes = _code_points(_folded(text))
    classes = _classes(codes)
    widths = np.where(classes == _SINGLE, 3, 1)
    places = np.cumsum(widths) - np.where(classes == _SINGLE, 2, 1)
    spaced = np.full(int(widths.sum()), ord(" "), np.uint32)
    kept = classes != _SEPARATOR
    spaced[places[kept]] = codes[kept]
    return spaced.tobytes().decode("utf-32-le")


def terms_of(text: str) -> list[str]:
    """The text's terms, in order. Those of more than MAX_TERM_BYTES are there too, though no index has them."""
    return spaced_terms(text).split()


@dataclass(frozen=True, kw_only=True, slots=True)
class LocatedTerms:
    """A text's terms in order; term i comes from characters [starts[i], ends[i]) of the text, i64 [num_terms] each."""

    terms: list[str]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]


def located_terms(text: str) -> LocatedTerms:
    """`terms_of`, each with its place."""
    folded, starts, ends = _folded_with_places(text)
    classes = _classes(_code_points(folded))
    before = np.concatenate([[_SEPARATOR], classes[:-1]])
    after = np.concatenate([classes[1:], [_SEPARATOR]])
    first = np.flatnonzero((classes == _SINGLE) | ((classes == _WORD) & (before != _WORD)))
    last = np.flatnonzero((classes == _SINGLE) | ((classes == _WORD) & (after != _WORD)))
    return LocatedTerms(terms=terms_of(text), starts=starts[first], ends=ends[last])


def _folded_with_places(text: str) -> tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The folded text, and for each of its characters the first and the last (not included) of the text's own.

    The text is cut before every character that never joins with what stands before it; pieces fold on their own.
    """
    if text.isascii():
        starts = np.arange(len(text))
        return text.lower(), starts, starts + 1
    widths = _looked_up(_WIDTHS, _code_points(text), _width_of).astype(np.int64)
    widths[:1] = np.maximum(widths[:1], 1)
    cuts = np.flatnonzero(widths)
    ends = np.append(cuts[1:], len(text))
    lengths = widths[cuts]
    for piece in np.flatnonzero((ends - cuts > 1) | (cuts == 0)).tolist():
        lengths[piece] = len(_folded(text[cuts[piece] : ends[piece]]))
    return _folded(text), np.repeat(cuts, lengths), np.repeat(ends, lengths)


def _width_of(code: int) -> int:
    """How many characters a character folds to; 0: it may join with the one before it."""
    joins = unicodedata.category(chr(code))[0] == "M" or _within(code, _JOINS_TO_PREVIOUS)
    return 0 if joins else len(_folded(chr(code)))
