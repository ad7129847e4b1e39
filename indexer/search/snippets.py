"""Snippets: the part of a hit's text that shows best why it matches, with the matches as character offsets.

The same terms are looked for as in the index (`indexer.fulltext.terms`); a phrase is highlighted where its terms stand next to
each other, a phrase with slop at each of its terms. n-grams are looked for in the tokens.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from indexer.answers.marked_text import join_ranges
from indexer.fulltext.terms import LocatedTerms, located_terms
from indexer.search.query.patterns import Gram, Pattern
from indexer.search.records import Snippet

__all__ = ["SNIPPET_CHARACTERS", "snippet_of"]

SNIPPET_CHARACTERS = 240
BEFORE = 60
MAX_HIGHLIGHTS, MAX_NGRAM_HIGHLIGHTS = 200, 20
Decode = Callable[[npt.NDArray[np.integer]], str]


def snippet_of(tokens: npt.NDArray[np.integer], decode: Decode, patterns: Sequence[Pattern | Gram]) -> Snippet:
    """The stretch of the tokens' text with most kinds of matches, then with most of them."""
    text = decode(tokens)
    located = located_terms(text if any(isinstance(pattern, Pattern) for pattern in patterns) else "")
    character_of = functools.cache(lambda token: len(decode(tokens[:token])))
    found: list[tuple[int, int, int]] = []
    for kind, pattern in enumerate(patterns):
        found += [(start, end, kind) for start, end in _places(tokens, located, character_of, pattern)]
    found.sort()
    start = _best_start(text, found)
    end = min(len(text), start + SNIPPET_CHARACTERS)
    inside = [(first, last) for first, last, _ in found if first < end and last > start]
    return Snippet(text=text[start:end], start=start, highlights=join_ranges(inside, start, end))


def _best_start(text: str, found: Sequence[tuple[int, int, int]]) -> int:
    """Where the window begins: BEFORE characters before the first match in it."""
    best, best_worth = 0, (-1, -1)
    for index, (start, _, _) in enumerate(found):
        inside = [kind for first, _, kind in found[index : index + 64] if first < start + SNIPPET_CHARACTERS - BEFORE]
        worth = (len(set(inside)), len(inside))
        if worth > best_worth:
            best, best_worth = start, worth
    latest = max(0, len(text) - SNIPPET_CHARACTERS)
    return _word_start(text, max(0, min(best - BEFORE, latest)))


def _word_start(text: str, position: int) -> int:
    """The first character after a space, a few characters on; `position` where there is none."""
    if position == 0:
        return 0
    space = text.find(" ", position - 1, position + BEFORE // 3)
    return position if space < 0 else space + 1


def _places(
    tokens: npt.NDArray[np.integer],
    located: LocatedTerms,
    character_of: Callable[[int], int],
    pattern: Pattern | Gram,
) -> list[tuple[int, int]]:
    """First and last character (not included) of each match."""
    if isinstance(pattern, Gram):
        return _in_tokens(tokens, character_of, pattern)
    return _in_text(located, pattern)


def _in_text(located: LocatedTerms, pattern: Pattern) -> list[tuple[int, int]]:
    wanted, terms, length = list(pattern.terms), located.terms, len(pattern.terms)
    if pattern.distance:
        close = {term for term in set(terms) if _within_distance(wanted[0], term, pattern.distance)}
        found = [index for index, term in enumerate(terms) if term in close]
    elif pattern.slop:
        found = [index for index, term in enumerate(terms) if term in wanted]
    elif length == 1 and pattern.is_prefix:
        found = [index for index, term in enumerate(terms) if term.startswith(wanted[0])]
    else:
        exact = wanted[:-1] if pattern.is_prefix else wanted
        found = list(_next_to_each_other(terms, exact))
        if pattern.is_prefix:
            ends = ((index, index + length - 1) for index in found)
            found = [index for index, end in ends if end < len(terms) and terms[end].startswith(wanted[-1])]
    last = length - 1 if not pattern.slop else 0
    return [(int(located.starts[index]), int(located.ends[index + last])) for index in found[:MAX_HIGHLIGHTS]]


def _next_to_each_other(terms: list[str], wanted: list[str]) -> Iterator[int]:
    at = -1
    with contextlib.suppress(ValueError):
        while True:
            at = terms.index(wanted[0], at + 1)
            if terms[at : at + len(wanted)] == wanted:
                yield at


def _in_tokens(
    tokens: npt.NDArray[np.integer], character_of: Callable[[int], int], gram: Gram
) -> list[tuple[int, int]]:
    wanted = list(gram.token_ids)
    starts = [
        at for at in np.flatnonzero(tokens == wanted[0]).tolist() if tokens[at : at + len(wanted)].tolist() == wanted
    ]
    return [(character_of(at), character_of(at + len(wanted))) for at in starts[:MAX_NGRAM_HIGHLIGHTS]]


def _within_distance(wanted: str, found: str, distance: int) -> bool:
    """Whether so many edits of one letter (a swap of neighbours is one) make one of the other."""
    if abs(len(wanted) - len(found)) > distance or len(set(wanted) - set(found)) > distance:
        return False
    before: list[int] = []
    row = list(range(len(found) + 1))
    for i, letter in enumerate(wanted, 1):
        before, last, row = row, before, [i]
        for j, other in enumerate(found, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != other))
            if i > 1 and j > 1 and letter == found[j - 2] and wanted[i - 2] == other:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1] <= distance
