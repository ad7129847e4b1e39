"""OLMo-core's token files: which documents are in instance n of a NumpyFSLDataset.

    resolver = OlmoDocuments(dataset)
    ExportHook.attach(…, documents=resolver)

Instance n is `sequence_length` tokens of one `.npy` file (raw tokens, no header), found by `dataset.offsets`. Beside the
file the Dolma toolkit writes `.csv.gz`: a line a document, `start,end,id,src,loc`, its first token and the one behind its
last, its id, the file that it came from and its line there. Its name here is `id@src#loc`, since ids occur twice in
Dolma; its source is the directory of `src`, unless `source_of` says otherwise. Documents stand in memory, about 100 bytes
each, once an instance of their file was seen.

Every instance is compared with the tokens that stand there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv

from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import Segment

__all__ = ["OlmoDocuments"]

_COLUMNS = {"start": pa.int64(), "end": pa.int64(), "id": pa.string(), "src": pa.string(), "loc": pa.int64()}
_SUPPORTED = "NumpyFSLDataset"


def directory_of(src: str) -> str:
    """`s3://bucket/dolma/wiki/en_0001.json.gz` → `wiki`."""
    return PurePosixPath(src).parent.name or src


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    tokens: npt.NDArray[np.unsignedinteger[Any]]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    names: pa.Table


class OlmoDocuments:
    """A DocumentResolver; `sample_index` is the index into the dataset given, `index` in OLMo-core's batches."""

    def __init__(self, dataset: Any, *, source_of: Callable[[str], str] = directory_of) -> None:
        """Raises InputError for another kind of dataset, and for files that are not local or lack their `.csv.gz`."""
        if type(dataset).__name__ != _SUPPORTED:
            raise InputError(
                f"expected a {_SUPPORTED}, found a {type(dataset).__name__}; others pack documents another way"
            )
        self._dataset, self._source_of = dataset, source_of
        self._last = np.array([end for _, end in dataset.offsets])
        self._files: dict[int, _File] = {}
        for path in dataset.paths:
            for needed in (Path(path), _names_path(path)):
                if not needed.is_file():
                    raise InputError(f"expected {needed}, found none; token files must be local, each with its .csv.gz")

    def segments(self, sample_index: int, tokens: npt.NDArray[np.integer[Any]]) -> Sequence[Segment]:
        """The documents of an instance. Raises InputError where it has other tokens."""
        number = int(np.searchsorted(self._last, sample_index, side="right"))
        if number == len(self._last):
            raise InputError(
                f"expected an instance below {self._last[-1]}, found {sample_index}; give the trainer's dataset"
            )
        first = (sample_index - self._dataset.offsets[number][0]) * len(tokens)
        file = self._file(number)
        if not np.array_equal(file.tokens[first : first + len(tokens)], tokens):
            raise InputError(
                f"instance {sample_index}: expected the tokens of {self._dataset.paths[number]} from {first} on, found "
                "others; give the dataset that the trainer reads"
            )
        return self._within(file, first, first + len(tokens))

    def _within(self, file: _File, first: int, stop: int) -> list[Segment]:
        found = []
        begin = int(np.searchsorted(file.ends, first, side="right"))
        for row in range(begin, int(np.searchsorted(file.starts, stop, side="left"))):
            document_start = int(file.starts[row])
            start, end = max(first, document_start), min(stop, int(file.ends[row]))
            if end <= start:
                continue
            document_id, src, line = (file.names.column(name)[row].as_py() for name in ("id", "src", "loc"))
            found.append(
                Segment(
                    start=start - first,
                    length=end - start,
                    source=self._source_of(src),
                    document_id=f"{document_id}@{src}#{line}",
                    document_token_offset=start - document_start,
                )
            )
        return found

    def _file(self, number: int) -> _File:
        found = self._files.get(number)
        if found is None:
            path = self._dataset.paths[number]
            names = csv.read_csv(
                _names_path(path), read_options=csv.ReadOptions(column_names=list(_COLUMNS)),
                convert_options=csv.ConvertOptions(column_types=_COLUMNS),
            )  # fmt: skip
            tokens = np.memmap(path, dtype=self._dataset.dtype, mode="r")
            found = _File(
                tokens=tokens, starts=names["start"].to_numpy(), ends=names["end"].to_numpy(),
                names=names.select(["id", "src", "loc"]),
            )  # fmt: skip
            if len(found.ends) and int(found.ends[-1]) > len(tokens):
                raise InputError(
                    f"{_names_path(path)}: expected documents within {len(tokens)} tokens, found one that ends at "
                    f"{found.ends[-1]}; it belongs to another token file"
                )
            self._files[number] = found
        return found


def _names_path(path: Any) -> Path:
    return Path(path).with_suffix(".csv.gz")
