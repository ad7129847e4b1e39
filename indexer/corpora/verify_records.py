"""What a comparison of an export with its corpus found."""

from dataclasses import dataclass
from enum import StrEnum

from indexer.corpora.files import FileRead

__all__ = ["CorpusFinding", "CorpusReport", "Reason"]


class Reason(StrEnum):
    """Why a segment's tokens are not those of its source text."""

    EDITED_TEXT = "edited text"
    OTHER_PLACE = "other place"
    OTHER_TOKENIZER = "other tokenizer"
    MISSING_DOCUMENT = "missing document"
    MISSING_FILE = "missing file"


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusFinding:
    """One segment that differs, or one document that is missing, by its first segment. place: file#number in the corpus."""

    reason: Reason
    source: str
    document_id: str
    place: str | None
    address: str
    start: int
    length: int
    document_token_offset: int
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusReport:
    """The outcome. Segments: num_segments = equal + different + missing; num_unnamed more name no document.

    findings: the first MAX_FINDINGS segments that differ and MAX_FINDINGS documents that are missing. ways: (how, segments) for
    each way in which texts were tokenized other than as they are. problems: records that could not be read, the first of
    num_problems. missing_files: names that the numbers of the others let expect. files: those read to their end.
    """

    num_segments: int
    num_equal: int
    num_different: int
    num_missing: int
    num_unnamed: int
    num_tokens_equal: int
    num_documents_equal: int
    num_documents_missing: int
    num_records: int
    tokenizer_sha256: str
    run_tokenizer_sha256: str | None
    ways: tuple[tuple[str, int], ...]
    findings: tuple[CorpusFinding, ...]
    missing_files: tuple[str, ...]
    files: tuple[FileRead, ...]
    problems: tuple[str, ...]
    num_problems: int

    @property
    def exit_code(self) -> int:
        """0 every segment is its text's, 1 one differs, 3 documents are missing, or the export names none at all."""
        if self.num_different:
            return 1
        return 3 if self.num_missing or not self.num_segments else 0
