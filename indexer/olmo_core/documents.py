"""The documents of OLMo-core's token files: the `.csv.gz` beside each, a line `start,end,id,src,loc` a document.

Without that file, or with `start,end` alone, documents are told apart, and their identity is unknown.
"""

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.boundaries import UNKNOWN_IDENTITY
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import Segment

__all__ = ["FileDocuments", "read_documents"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FileDocuments:
    """starts, ends: i64 [num_documents], tokens in the file, ascending. names: (source, document_id) of each."""

    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    names: list[tuple[str, str]]

    def segments(self, first: int, num_tokens: int) -> tuple[Segment, ...]:
        """The segments of the sequence that begins at token `first` of the file."""
        return tuple(self._segments(first, first + num_tokens))

    def _segments(self, first: int, end: int) -> Iterator[Segment]:
        for index in range(int(np.searchsorted(self.ends, first, side="right")), len(self.starts)):
            begin, finish = int(self.starts[index]), int(self.ends[index])
            if begin >= end:
                return
            start, stop = max(begin, first), min(finish, end)
            source, document_id = self.names[index]
            if stop > start:
                yield Segment(
                    start=start - first, length=stop - start, source=source, document_id=document_id,
                    document_token_offset=start - begin,
                )  # fmt: skip


def read_documents(tokens: Path) -> FileDocuments | None:
    """The documents of a token file, None where no file beside it tells. Raises InputError for a file that is none."""
    path = tokens.with_suffix(".csv.gz")
    if not path.exists():
        return None
    starts, ends, names = [], [], []
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            for row in csv.reader(file):
                starts.append(int(row[0]))
                ends.append(int(row[1]))
                known = len(row) > 2 and row[2] != ""
                names.append((row[3] if len(row) > 3 else tokens.stem, row[2]) if known else (UNKNOWN_IDENTITY, ""))
    except (OSError, EOFError, ValueError, IndexError, csv.Error) as error:
        raise InputError(
            f"{path}: expected a line start,end,id,src,loc a document; line {len(ends) + 1}: {error}"
        ) from error
    found = FileDocuments(starts=np.array(starts, np.int64), ends=np.array(ends, np.int64), names=names)
    if np.any(found.starts > found.ends) or np.any(found.starts[1:] < found.ends[:-1]):
        raise InputError(f"{path}: expected documents one behind the other, found ones that overlap")
    return found
