"""Token files as the Dolma toolkit writes them for OLMo, and the names of their documents.

Beside each `.npy` file (raw tokens, no header) stands `.csv.gz`: a line a document, `start,end,id,src,loc`, its first token and
the one behind its last, its id, the file that its text came from and its line there, from 1. With `start,end` alone, or an
empty id, documents are told apart, and their identity is unknown.

A document has one name, whether a trainer meets its tokens or `indexer.corpora` its text (ADR 18), made of what both know:

- `document_id` is `id@path#line`, since ids occur twice in Dolma; `path` is that below the corpus. What does not lie below it
  has its whole `src` for a path.
- `source` is the directory of the file, `documents` and version numbers skipped; else the file's name without its number.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from train_hooks.export_format.boundaries import UNKNOWN_IDENTITY
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import Segment

__all__ = ["TokenFileDocuments", "dolma_name", "names_path", "require_below", "token_file_documents"]

_ENDING = re.compile(r"\.(?:jsonl|ndjson|json|parquet)(?:\.gz|\.zst|\.zstd)?$")
_NUMBER = re.compile(r"(?<=.)[-_]\d+$")
_NO_SOURCE = re.compile(r"documents|v\d[\w.-]*|")
_TYPES = {"f0": pa.int64(), "f1": pa.int64(), "f2": pa.string(), "f3": pa.string(), "f4": pa.int64()}
_LINE = "a line start,end,id,src,loc a document"


def dolma_name(path: str, line: int, native_id: str | None) -> tuple[str, str]:
    """(source, document_id) of a record; path: of its file, below the corpus.

    `wiki/v0/documents/0001.json.gz`, 7, `Q1` → `wiki`, `Q1@wiki/v0/documents/0001.json.gz#7`.
    """
    *directories, file = path.split("/")
    named = [name for name in directories if not _NO_SOURCE.fullmatch(name)]
    source = named[-1] if named else _NUMBER.sub("", _ENDING.sub("", file))
    place = f"{path}#{line}"
    return source, place if native_id is None else f"{native_id}@{place}"


def _below(src: str, corpus: str) -> str | None:
    start = corpus.rstrip("/") + "/"
    return src[len(start) :] if corpus and src.startswith(start) and len(src) > len(start) else None


def names_path(tokens: Path) -> Path:
    """The `.csv.gz` beside a token file."""
    return tokens.with_suffix(".csv.gz")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFileDocuments:
    """starts, ends: i64 [num_documents], tokens in the file, ascending. names: id, src, loc (f2, f3, f4), where known."""

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    names: pa.Table
    corpus: str

    def segments(self, first: int, num_tokens: int) -> tuple[Segment, ...]:
        """The segments of the sequence that begins at token `first` of the file."""
        return tuple(self._segments(first, first + num_tokens))

    def _segments(self, first: int, stop: int) -> Iterator[Segment]:
        begin = int(np.searchsorted(self.ends, first, side="right"))
        for row in range(begin, int(np.searchsorted(self.starts, stop, side="left"))):
            document_start = int(self.starts[row])
            start, end = max(first, document_start), min(stop, int(self.ends[row]))
            if end <= start:
                continue
            source, document_id = self._name(row)
            yield Segment(
                start=start - first, length=end - start, source=source, document_id=document_id,
                document_token_offset=start - document_start,
            )  # fmt: skip

    def _name(self, row: int) -> tuple[str, str]:
        if self.names.num_columns < len(_TYPES) - 2:
            return UNKNOWN_IDENTITY, ""
        native_id, src, line = (column[row].as_py() for column in self.names.columns)
        if not native_id:
            return UNKNOWN_IDENTITY, ""
        return dolma_name(_below(src, self.corpus) or src, line, native_id)


def require_below(tokens: Path, corpus: str) -> None:
    """Raises InputError where the first document of a token file has a name, and its `src` is not below `corpus`."""
    path = names_path(tokens)
    try:
        with csv.open_csv(path, *_options()) as reader:
            table = pa.Table.from_batches([reader.read_next_batch().slice(0, 1)])
    except (OSError, StopIteration, pa.ArrowException) as error:
        raise InputError(f"{path}: expected {_LINE}: {error}") from error
    if table.num_columns < len(_TYPES) or not table.num_rows or not table["f2"][0].as_py():
        return
    src = table["f3"][0].as_py()
    if _below(src, corpus) is None:
        raise InputError(
            f"{path}: expected texts below the corpus {corpus!r}, found {src!r}; documents are named by their place in the "
            "corpus, so give the directory or address where it was when it was tokenized (corpus=, --corpus)"
        )


def token_file_documents(tokens: Path, num_tokens: int, corpus: str) -> TokenFileDocuments:
    """The documents of a token file of `num_tokens`. Raises InputError for a `.csv.gz` that is none, or of another file."""
    path = names_path(tokens)
    try:
        table = csv.read_csv(path, *_options())
        starts, ends = (table[name].to_numpy() for name in ("f0", "f1"))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise InputError(f"{path}: expected {_LINE}: {error}") from error
    if np.any(starts > ends) or np.any(starts[1:] < ends[:-1]):
        raise InputError(f"{path}: expected documents one behind the other, found ones that overlap")
    if len(ends) and int(ends[-1]) > num_tokens:
        raise InputError(
            f"{path}: expected documents within {num_tokens} tokens, found one that ends at {ends[-1]}; it belongs to "
            "another token file"
        )
    return TokenFileDocuments(starts=starts, ends=ends, names=table.select(table.column_names[2:5]), corpus=corpus)


def _options() -> tuple[csv.ReadOptions, csv.ParseOptions, csv.ConvertOptions]:
    read = csv.ReadOptions(autogenerate_column_names=True)
    return read, csv.ParseOptions(), csv.ConvertOptions(column_types=_TYPES)
