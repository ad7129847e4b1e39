"""A corpus as documents, in the order of its files and records.

A layout that is not named is known by the first record of each file (`layouts.LAYOUTS`). Records without a text are named as
problems; those with an empty one are documents, since a place in the order is theirs.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from indexer.corpora.files import CorpusFile, FileRead, Problems, list_files, records_of
from indexer.corpora.layouts import LAYOUTS, NamedRecord, layout_of
from train_hooks.export_format.errors import InputError

__all__ = ["CorpusDocument", "CorpusReader"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusDocument:
    """One document. file, number: the name of its file, and its line from 1 or its row (of Parquet) from 0."""

    source: str
    document_id: str
    native_id: str | None
    native_source: str | None
    text: str
    file: str
    number: int

    @property
    def text_sha256(self) -> str:
        """Of the text as UTF-8: filters edit texts, ids stay."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """(source, document_id) that an export may have it under: the stable ones, and the corpus's own where they differ."""
        sources = dict.fromkeys((self.source, self.native_source or self.source))
        ids = dict.fromkeys((self.document_id, self.native_id or self.document_id))
        return tuple((source, document_id) for document_id in ids for source in sources)


class CorpusReader:
    """Reads a corpus. `problems` and `files_read` grow while documents are taken.

    layout: one of LAYOUTS for all files. progress: called with (bytes read, bytes in all), of the files as they are.
    """

    def __init__(
        self, corpus: Path | str, *, layout: str | None = None, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Raises InputError for a corpus without files, or a layout that is none."""
        if layout is not None and layout not in LAYOUTS:
            raise InputError(f"layout: expected one of {', '.join(LAYOUTS)}, found {layout!r}")
        self.files = list_files(Path(corpus))
        self.problems = Problems()
        self.files_read: list[FileRead] = []
        self._layout, self._progress = layout, progress
        self._num_bytes, self._total_bytes = 0, sum(file.size_bytes for file in self.files)

    def documents(self, first: Collection[str] = ()) -> Iterator[CorpusDocument]:
        """Every document of every file; those of the files named in `first` before the others.

        Raises InputError where no record of the whole corpus is one.
        """
        num_documents = 0
        for file in sorted(self.files, key=lambda file: file.name not in first):
            for document in self._of_file(file):
                num_documents += 1
                yield document
        if not num_documents:
            why = f"; the first: {self.problems.first[0]}" if self.problems.first else ""
            raise InputError(f"expected documents of {', '.join(LAYOUTS)} in the corpus, found none{why}")

    def _of_file(self, file: CorpusFile) -> Iterator[CorpusDocument]:
        layout = self._layout
        what = "row" if file.name.endswith(".parquet") else "line"
        for number, record in records_of(file, self.problems, self._advance, self.files_read.append):
            layout = layout or layout_of(record, file.name)
            try:
                if layout is None:
                    raise ValueError(f"expected a record of {', '.join(LAYOUTS)}, found keys {', '.join(record)[:200]}")
                named: NamedRecord = LAYOUTS[layout].name(record, file.name, number)
            except ValueError as error:
                self.problems.add(f"{file.name} {what} {number}: {error}")
                continue
            yield CorpusDocument(
                source=named.source, document_id=named.document_id, native_id=named.native_id,
                native_source=named.native_source, text=named.text, file=file.name, number=number,
            )  # fmt: skip

    def _advance(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if self._progress is not None:
            self._progress(self._num_bytes, self._total_bytes)
