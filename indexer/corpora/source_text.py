"""From a document's exposures back to its source text: which parts of it the model saw, and in which steps.

The text is cut where exposures begin and end, at characters: a token that is a part of a character goes with the token before.
An exposure that is not what the text gives at its place is counted in `num_different` and marks nothing.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.corpora.explain import find_tokens
from indexer.corpora.layouts import positional_id
from indexer.corpora.missing_files import FileNames
from indexer.corpora.reader import CorpusDocument, CorpusReader
from indexer.corpora.source_tokenizer import PLAIN, SourceTokenizer
from indexer.documents.history import Exposure
from indexer.reader import IndexReader
from train_hooks.export_format.errors import IncompleteError

__all__ = ["SourceText", "TextPart", "source_text"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPart:
    """Tokens [start, end) of a document, and their text. steps: those that saw it, ascending; num_exposures: how often."""

    start: int
    end: int
    char_start: int
    char_end: int
    num_exposures: int
    steps: tuple[int, ...]
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceText:
    """A document as its corpus has it. place: file#number; how: the way in which it was tokenized; parts: all of the text."""

    place: str
    text_sha256: str
    num_tokens: int
    how: str
    num_exposures: int
    num_different: int
    parts: tuple[TextPart, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Match:
    """A document in one way of tokenization; ranges: [start, end) in `ids` and the step of each exposure that fits."""

    document: CorpusDocument
    how: str
    ids: Ids
    ranges: tuple[tuple[int, int, int], ...]


def source_text(
    reader: IndexReader,
    corpus: Path,
    source: str,
    document_id: str,
    exposures: Sequence[Exposure],
    *,
    tokenizer: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SourceText:
    """Find the document in the corpus and lay its exposures over it.

    Where the corpus has the name several times, the first document that gives all exposures is taken, or that with most. A
    document whose id names its file is looked for there first, and no further where it is found.
    progress: called with (bytes read, bytes in all).
    Raises IncompleteError where the corpus does not have it, InputError where `corpus` has no documents, RunError where there
    is no tokenizer.
    """
    run_tokenizer = SourceTokenizer.of_run(reader.run, tokenizer)
    seen = [(exposure, _tokens(reader, exposure)) for exposure in exposures]
    best: _Match | None = None
    corpus_reader = CorpusReader(corpus, progress=progress)
    positional = positional_id(document_id)
    own_files = FileNames(file.name for file in corpus_reader.files).of_id(document_id)
    for document in corpus_reader.documents(first=own_files):
        if best is not None and best.document.file in own_files and document.file not in own_files:
            break
        if (source, document_id) not in document.names and (source, positional) not in document.names:
            continue
        match = _match(document, seen, run_tokenizer)
        if best is None or len(match.ranges) > len(best.ranges):
            best = match
        if len(best.ranges) == len(exposures):
            break
    if best is None:
        raise IncompleteError(
            f"the corpus {corpus} has no document {document_id!r} of source {source!r}; "
            f"{len(corpus_reader.files)} files were read, and {corpus_reader.problems.number} problems found"
        )
    return SourceText(
        place=f"{best.document.file}#{best.document.number}",
        text_sha256=best.document.text_sha256,
        num_tokens=len(best.ids),
        how=best.how,
        num_exposures=len(exposures),
        num_different=len(exposures) - len(best.ranges),
        parts=tuple(_parts(best, run_tokenizer)),
    )


def _tokens(reader: IndexReader, exposure: Exposure) -> Ids:
    segment = exposure.segment
    return reader.sequence(exposure.address).tokens[segment.start : segment.start + segment.length].astype(np.int64)


def _match(document: CorpusDocument, seen: Sequence[tuple[Exposure, Ids]], tokenizer: SourceTokenizer) -> _Match:
    matches = []
    begins = (
        int(tokens[0]) for exposure, tokens in seen if exposure.segment.document_token_offset == 0 and len(tokens)
    )
    ways = tokenizer.ways(document.text, next(begins, None))
    for how, ids in [(PLAIN, tokenizer.plain([document.text])[0]), *ways]:
        ranges = []
        for exposure, tokens in seen:
            found = _range(exposure, tokens, ids, tokenizer.specials)
            if found is not None:
                ranges.append((*found, exposure.address.global_step))
        matches.append(_Match(document=document, how=how, ids=ids, ranges=tuple(ranges)))
    return max(matches, key=lambda match: len(match.ranges))


def _range(exposure: Exposure, tokens: Ids, ids: Ids, specials: frozenset[int]) -> tuple[int, int] | None:
    """Where an exposure stands in the document, without a separator behind it; None where it is not what the text gives."""
    ends_special = len(tokens) > 0 and int(tokens[-1]) in specials
    for part in (tokens, tokens[:-1]) if ends_special else (tokens,):
        place = exposure.segment.document_token_offset
        if place < 0 and len(part):
            place = find_tokens(ids, part)
        whole = len(part) == len(tokens) or place + len(part) == len(ids)
        if 0 <= place <= len(ids) and whole and np.array_equal(ids[place : place + len(part)], part):
            return place, place + len(part)
    return None


def _parts(match: _Match, tokenizer: SourceTokenizer) -> list[TextPart]:
    text, num_tokens = match.document.text, len(match.ids)
    characters = tokenizer.offsets(text, match.how)
    edges = sorted({0, num_tokens, *(edge for start, end, _ in match.ranges for edge in (start, end))})
    parts = []
    for start, end in itertools.pairwise(edges):
        begin = 0 if start == 0 else int(characters[start])
        finish = len(text) if end == num_tokens else int(characters[end])
        steps = [step for first, last, step in match.ranges if first <= start and end <= last]
        parts.append(
            TextPart(
                start=start,
                end=end,
                char_start=begin,
                char_end=finish,
                num_exposures=len(steps),
                steps=tuple(sorted(set(steps))),
                text=text[begin:finish],
            )
        )
    return parts
