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
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_TERM_BYTES", "LocatedTerm", "located_terms", "spaced_terms", "terms_of"]

MAX_TERM_BYTES = 255
_SEPARATOR, _WORD, _SINGLE, _UNKNOWN = 0, 1, 2, 255
_SCRIPTS_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1100, 0x11FF), (0x1780, 0x17FF), (0x19E0, 0x19FF), (0x2E80, 0x2FDF),
    (0x3005, 0x3007), (0x3021, 0x3029), (0x3031, 0x30FF), (0x3100, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
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


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _classes(codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """The class of each code point; one that is met for the first time is looked up and kept."""
    known = np.minimum(codes, _LAST_LETTER + 1)
    classes = _CLASSES[known]
    unknown = classes == _UNKNOWN
    if unknown.any():
        for code in np.unique(known[unknown]).tolist():
            _CLASSES[code] = _class_of(code)
        classes = _CLASSES[known]
    return classes


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
    return [term for term in spaced_terms(text).split(" ") if term]


@dataclass(frozen=True, kw_only=True, slots=True)
class LocatedTerm:
    """A term, and the characters [start, end) of the text that it comes from."""

    term: str
    start: int
    end: int


def located_terms(text: str) -> list[LocatedTerm]:
    """`terms_of`, each with its place."""
    folded, starts, ends = _folded_with_places(text)
    classes = _classes(_code_points(folded))
    before = np.concatenate([[_SEPARATOR], classes[:-1]])
    after = np.concatenate([classes[1:], [_SEPARATOR]])
    first = np.flatnonzero((classes == _SINGLE) | ((classes == _WORD) & (before != _WORD)))
    last = np.flatnonzero((classes == _SINGLE) | ((classes == _WORD) & (after != _WORD)))
    return [
        LocatedTerm(term=folded[a : b + 1], start=int(starts[a]), end=int(ends[b]))
        for a, b in zip(first.tolist(), last.tolist(), strict=True)
    ]


def _folded_with_places(text: str) -> tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The folded text, and for each of its characters the first and the last (not included) of the text's own."""
    folded = _folded(text)
    if len(folded) == len(text) and unicodedata.is_normalized("NFKC", text):
        starts = np.arange(len(text))
        return folded, starts, starts + 1
    pieces, starts_of, ends_of = [], [], []
    for start, end in _pieces(text):
        piece = _folded(text[start:end])
        pieces.append(piece)
        starts_of += [start] * len(piece)
        ends_of += [end] * len(piece)
    return "".join(pieces), np.array(starts_of, np.int64), np.array(ends_of, np.int64)


def _pieces(text: str) -> list[tuple[int, int]]:
    """The text cut before every character that never joins with what stands before it."""
    cuts = [
        index
        for index, character in enumerate(text)
        if index == 0
        or character.isascii()
        or not (unicodedata.category(character)[0] == "M" or _within(ord(character), _JOINS_TO_PREVIOUS))
    ]
    return list(zip(cuts, [*cuts[1:], len(text)], strict=True))
