"""Is every exported segment the tokenization of its document at its offset? An export held against its corpus.

1. `collect_claims` reads the export once: every segment of every committed step, superseded ones too.
2. `compare_with_corpus` reads the corpus once, in its own order, and tokenizes the documents that have segments.
3. A segment is *equal* if one document of its name gives its tokens, in one of the ways of `source_tokenizer`. Where a corpus
   has a name several times, any of them will do. Where the export does not know the offset, any place in the document will.
4. Segments whose text is not in the corpus are *missing*; all others are *different*, and the first of them are explained.

Memory holds one batch of documents; claims lie in a directory that the caller gives.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.corpora.claims import DIFFERENT, EQUAL, UNSEEN, Claims, tokens_digest
from indexer.corpora.explain import explain_difference
from indexer.corpora.files import missing_numbers
from indexer.corpora.missing_files import FileNames
from indexer.corpora.reader import CorpusDocument, CorpusReader
from indexer.corpora.source_tokenizer import PLAIN, SourceTokenizer
from indexer.corpora.verify_records import CorpusFinding, CorpusReport, Reason
from train_hooks.export_format.reading.reader import RunReader

__all__ = ["Expected", "collect_claims", "compare_with_corpus"]

Ids = npt.NDArray[np.int64]
MAX_FINDINGS, MAX_EXPLAINED = 20, 200
BATCH_CHARACTERS, BATCH_DOCUMENTS = 1 << 20, 256


def collect_claims(run: RunReader, directory: Path, *, progress: Callable[[int, int], None] | None = None) -> Claims:
    """The claims of a run, kept in `directory`. Raises DamageError where a frame does not match its hash."""
    claims = Claims(directory, run)
    work = []
    for attempt in run.attempts():
        writers = attempt.writers()
        committed = set(attempt.committed_steps(writers))
        steps = [item for writer in writers.values() for item in writer.steps()]
        work += [(attempt, file, ack) for file, ack in steps if ack.global_step in committed and ack.num_rows]
    for number, (attempt, file, ack) in enumerate(work, 1):
        claims.add_frame(attempt, attempt.frame(file, ack))
        if progress is not None:
            progress(number, len(work))
    claims.finish()
    return claims


def compare_with_corpus(
    run: RunReader,
    claims: Claims,
    corpus: Path,
    *,
    tokenizer: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CorpusReport:
    """Compare every claim with its text.

    tokenizer: the tokenizer.json that made the tokens, where it is not the run's own. Raises RunError where there is none,
    InputError where `corpus` has no documents.
    """
    reader = CorpusReader(corpus, progress=progress)
    return _Comparison(run, claims, reader, SourceTokenizer.of_run(run, tokenizer)).report()


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """The tokens that a document gives in one way, as the run's dtype; fits: whether the dtype holds them all."""

    ids: Ids
    tokens: npt.NDArray[np.unsignedinteger]
    fits: bool

    @classmethod
    def of(cls, ids: Ids, token_dtype: str) -> "Expected":
        """From ids i64 [n]."""
        dtype = np.dtype(token_dtype).newbyteorder("<")
        fits = not len(ids) or int(ids.max()) <= np.iinfo(dtype).max
        return cls(ids=ids, tokens=ids.astype(dtype), fits=fits)

    def matches(self, claim: "_Claim", specials: frozenset[int]) -> bool:
        """Whether a segment's tokens stand at its offset, or anywhere if that is not known; a special token may follow."""
        if not self.fits:
            return False
        return any(self._matches_at(claim, place, specials) for place in self._places(claim))

    def _places(self, claim: "_Claim") -> Sequence[int]:
        if claim.offset >= 0:
            return [claim.offset]
        places = np.flatnonzero(self.tokens == claim.first)
        found = [int(place) for place in places if place + claim.length <= len(self.tokens) + 1]
        return [*found, len(self.tokens)] if claim.length == 1 else found  # the separator alone

    def _matches_at(self, claim: "_Claim", place: int, specials: frozenset[int]) -> bool:
        part = self.tokens[place : place + claim.length]
        if len(part) == claim.length - 1 and place + len(part) == len(self.tokens) and claim.last in specials:
            part = np.append(part, np.array(claim.last, part.dtype))
        return len(part) == claim.length and int(part[-1]) == claim.last and tokens_digest(part) == claim.digest


@dataclass(frozen=True, kw_only=True, slots=True)
class _Claim:
    offset: int
    length: int
    first: int
    last: int
    digest: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tokenized:
    """A document tokenized in one way, and which of some claims that matches."""

    how: str
    ids: Ids
    matches: npt.NDArray[np.bool_]


class _Comparison:
    def __init__(self, run: RunReader, claims: Claims, corpus: CorpusReader, tokenizer: SourceTokenizer) -> None:
        self._run, self._claims, self._corpus, self._tokenizer = run, claims, corpus, tokenizer
        own = run.info.tokenizer_file is not None
        self._own = SourceTokenizer(run.tokenizer_path()) if own else tokenizer
        self._ways: Counter[str] = Counter()
        self._different: dict[tuple[int, int, int], CorpusFinding] = {}
        self._num_explained = self._num_records = 0

    def report(self) -> CorpusReport:
        batch: list[tuple[CorpusDocument, list[npt.NDArray[np.void]]]] = []
        num_characters = 0
        for document in self._corpus.documents():
            self._num_records += 1
            found = [claims for name in document.names if len(claims := self._claims.of(*name))]
            if not found:
                continue
            batch.append((document, found))
            num_characters += len(document.text)
            if num_characters >= BATCH_CHARACTERS or len(batch) >= BATCH_DOCUMENTS:
                self._compare(batch)
                batch, num_characters = [], 0
        self._compare(batch)
        return self._result()

    def _compare(self, batch: Sequence[tuple[CorpusDocument, list[npt.NDArray[np.void]]]]) -> None:
        all_ids = self._tokenizer.plain([document.text for document, _ in batch])
        for (document, found), ids in zip(batch, all_ids, strict=True):
            for claims in found:
                self._compare_document(document, claims, ids)

    def _compare_document(self, document: CorpusDocument, claims: npt.NDArray[np.void], plain: Ids) -> None:
        """Holds all claims against one way, that which gives most of them: two would hide an edit that makes up their shift."""
        indices = np.flatnonzero(claims["state"] != EQUAL)
        best = _Tokenized(how=PLAIN, ids=plain, matches=self._matching(claims, indices, plain))
        first = next(iter(claims["first"][claims["offset"] == 0].tolist()), None)
        for how, ids in () if best.matches.all() else self._tokenizer.ways(document.text, first):
            way = _Tokenized(how=how, ids=ids, matches=self._matching(claims, indices, ids))
            best = max(best, way, key=lambda way: (int(way.matches.sum()), self._ways[way.how]))
            if best.matches.all():
                break
        self._ways[best.how] += int(best.matches.sum())
        for index in indices[best.matches].tolist():
            claims["state"][index] = EQUAL
            self._different.pop(_name(claims[index]), None)
        self._explain(document, claims, indices[~best.matches], best.ids)

    def _explain(
        self, document: CorpusDocument, claims: npt.NDArray[np.void], rest: npt.NDArray[np.int64], ids: Ids
    ) -> None:
        claims["state"][rest] = DIFFERENT
        for index in rest.tolist():
            if self._num_explained < MAX_EXPLAINED:
                self._num_explained += 1
                claim = claims[index]
                row = self._claims.frames.row(claim)
                finding = explain_difference(document, row, int(claim["segment"]), ids, self._tokenizer, self._own)
                self._different[_name(claim)] = finding

    def _matching(
        self, claims: npt.NDArray[np.void], indices: npt.NDArray[np.int64], ids: Ids
    ) -> npt.NDArray[np.bool_]:
        """Which of the claims at `indices` the tokens of their document give."""
        expected = Expected.of(ids, self._run.info.token_dtype)
        known: dict[_Claim, bool] = {}
        matches = []
        for index in indices.tolist():
            stored = claims[index]
            claim = _Claim(
                offset=int(stored["offset"]), length=int(stored["length"]), first=int(stored["first"]),
                last=int(stored["last"]), digest=stored["digest"].tobytes(),
            )  # fmt: skip
            if claim not in known:
                known[claim] = expected.matches(claim, self._tokenizer.specials)
            matches.append(known[claim])
        return np.array(matches, np.bool_)

    def _result(self) -> CorpusReport:
        segments, tokens, documents = (np.zeros(3, np.int64) for _ in range(3))
        for claims in self._claims.files():
            segments += np.bincount(claims["state"], minlength=3)
            tokens += np.bincount(claims["state"], weights=claims["length"], minlength=3).astype(np.int64)
            for state in (UNSEEN, EQUAL):
                documents[state] += len(np.unique(claims["key"][claims["state"] == state]))
        names = [file.name for file in self._corpus.files]
        missing = list(self._missing(names))
        problems = self._corpus.problems
        return CorpusReport(
            num_segments=self._claims.num_claims,
            num_equal=int(segments[EQUAL]),
            num_different=int(segments[DIFFERENT]),
            num_missing=int(segments[UNSEEN]),
            num_unnamed=self._claims.num_unnamed,
            num_tokens_equal=int(tokens[EQUAL]),
            num_documents_equal=int(documents[EQUAL]),
            num_documents_missing=int(documents[UNSEEN]),
            num_records=self._num_records,
            tokenizer_sha256=self._tokenizer.sha256,
            run_tokenizer_sha256=self._run.info.tokenizer_sha256,
            ways=tuple((how, number) for how, number in self._ways.most_common() if number and how != PLAIN),
            findings=(*list(self._different.values())[:MAX_FINDINGS], *missing),
            missing_files=tuple(missing_numbers(names)),
            files=tuple(self._corpus.files_read),
            problems=tuple(problems.first),
            num_problems=problems.number,
        )

    def _missing(self, names: Sequence[str]) -> Iterator[CorpusFinding]:
        """The first documents that the corpus does not have, each by its first segment; of those of a missing file one."""
        files = FileNames(names)
        unseen = itertools.islice(self._unseen_documents(), MAX_EXPLAINED)
        found: dict[str | tuple[str, str], CorpusFinding] = {}
        for finding in (self._missing_document(claim, files) for claim in unseen):
            of_file = finding.reason is Reason.MISSING_FILE
            found.setdefault(finding.message if of_file else (finding.source, finding.document_id), finding)
        yield from itertools.islice(found.values(), MAX_FINDINGS)

    def _unseen_documents(self) -> Iterator[np.void]:
        """The first segment of each."""
        for claims in self._claims.files():
            unseen = claims[claims["state"] == UNSEEN]
            yield from unseen[np.unique(unseen["key"], return_index=True)[1]]

    def _missing_document(self, claim: np.void, files: FileNames) -> CorpusFinding:
        row = self._claims.frames.row(claim)
        segment = row.segments[int(claim["segment"])]
        missing = files.missing(segment.document_id)
        return CorpusFinding(
            reason=Reason.MISSING_DOCUMENT if missing is None else Reason.MISSING_FILE,
            source=segment.source, document_id=segment.document_id, place=None, address=str(row.address),
            start=segment.start, length=segment.length, document_token_offset=segment.document_token_offset,
            message=missing or "the corpus has no document of this source and id",
        )  # fmt: skip


def _name(claim: np.void) -> tuple[int, int, int]:
    return int(claim["frame"]), int(claim["row"]), int(claim["segment"])
