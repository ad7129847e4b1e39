"""The spans of a trace: all maximal ones, mended at their edges, and the selection of the rarest.

A word's tokens depend on what stands before it: `The` at the start of a document is another token than ` The` after a
space. A span that fails at its first word for that reason alone is searched again from that word's start, tokenized as if
the text began there and as if a space stood before it, and takes the longer match.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.answers.deadline import check_deadline
from indexer.reader import IndexReader
from indexer.selection.rows import SelectedShard
from indexer.spans.group import Member, Spans, spans_of_group
from indexer.tokenizer.tokenizer import Encoded
from indexer.trace.input import as_if_after_space
from indexer.trace.visible_spans import visible_spans

__all__ = ["FoundSpan", "find_spans", "log_probability", "rarest_spans"]

MAX_WORD_CHARACTERS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundSpan:
    """A maximal span before it is described: tokens [start, end) of `encoded`, characters [char_start, char_end).

    ranks: its suffix ranks [lo, hi) in each searched shard.
    """

    encoded: Encoded
    start: int
    end: int
    char_start: int
    char_end: int
    count: int
    ranks: tuple[tuple[int, int], ...]

    @property
    def token_ids(self) -> npt.NDArray[np.int64]:
        """The span's tokens, i64 [length]."""
        return self.encoded.token_ids[self.start : self.end]


def find_spans(
    reader: IndexReader, selected: Sequence[SelectedShard], variants: Sequence[Encoded], text: str, min_length: int
) -> list[FoundSpan]:
    """All maximal spans by characters (by tokens where there is no text), ascending; none lies inside another one."""
    found = [
        span for encoded in variants for span in _search(reader, selected, encoded, min_length, has_text=bool(text))
    ]
    found = _not_inside_others(found)
    if text and len(variants) > 1:
        found = _not_inside_others([_with_first_word(reader, selected, text, span, min_length) for span in found])
    return found


def _search(
    reader: IndexReader, selected: Sequence[SelectedShard], encoded: Encoded, min_length: int, *, has_text: bool
) -> list[FoundSpan]:
    members = [
        Member(number=reader.group_numbers[item.shard.info.name], arrays=item.spans, filter=item.filter)
        for item in selected
    ]
    spans = spans_of_group(reader.span_group, encoded.token_ids, min_length, members, reader.executor)
    spans = visible_spans(selected, encoded.token_ids, spans, min_length)
    return [_found(encoded, spans, index, has_text=has_text) for index in range(len(spans))]


def _found(encoded: Encoded, spans: Spans, index: int, *, has_text: bool) -> FoundSpan:
    start, end = int(spans.start[index]), int(spans.end[index])
    return FoundSpan(
        encoded=encoded,
        start=start,
        end=end,
        char_start=int(encoded.char_starts[start]) if has_text else start,
        char_end=int(encoded.char_ends[end - 1]) if has_text else end,
        count=int(spans.count[index]),
        ranks=tuple(zip(spans.shard_lo[index].tolist(), spans.shard_hi[index].tolist(), strict=True)),
    )


def _not_inside_others(found: list[FoundSpan]) -> list[FoundSpan]:
    """Without those that lie inside another one; of two over the same characters the more frequent stays."""
    kept: list[FoundSpan] = []
    for span in sorted(found, key=lambda span: (span.char_start, -span.char_end, -span.count)):
        if not kept or span.char_end > kept[-1].char_end:
            kept.append(span)
    return kept


def _with_first_word(
    reader: IndexReader, selected: Sequence[SelectedShard], text: str, span: FoundSpan, min_length: int
) -> FoundSpan:
    """The span from the start of its first word, where that word occurs with other tokens; else the span itself."""
    check_deadline()
    start = _word_start(text, span.char_start)
    if start == span.char_start or start == 0:
        return span
    piece = text[start : span.char_end]
    best = span
    for encoded in (reader.tokenizer.encode(piece), as_if_after_space(reader.tokenizer, piece)):
        placed = Encoded(
            token_ids=encoded.token_ids, char_starts=encoded.char_starts + start, char_ends=encoded.char_ends + start
        )
        for other in _search(reader, selected, placed, min_length, has_text=True)[:1]:
            if other.char_start == start and other.char_end >= best.char_end:
                best = other
    return best


def _word_start(text: str, position: int) -> int:
    """Start of the word that holds `position` or ends right before it; `position` where there is none."""
    start = position
    while start > 0 and start > position - MAX_WORD_CHARACTERS and not text[start - 1].isspace():
        start -= 1
    return start


def rarest_spans(
    log_probabilities: npt.NDArray[np.float64], found: Sequence[FoundSpan], text: str, limit: int
) -> dict[int, int]:
    """Index of each selected span → its place by rarity, from 0. What has no letter or digit takes no place."""
    candidates = [
        index
        for index, span in enumerate(found)
        if not text or any(character.isalnum() for character in text[span.char_start : span.char_end])
    ]
    candidates.sort(key=lambda index: (log_probability(log_probabilities, found[index].token_ids), index))
    return {index: place for place, index in enumerate(candidates[:limit])}


def log_probability(log_probabilities: npt.NDArray[np.float64], token_ids: npt.NDArray[np.int64]) -> float:
    """Sum of the unigram log-probabilities of tokens."""
    return float(log_probabilities[token_ids].sum())
