"""datatrove's tokenized files: which documents are in sample n of a DatatroveFolderDataset, or of nanotron's blends of them.

    resolver = DatatroveDocuments(dataset)
    ExportHook.attach(…, documents=resolver)

Sample n of a file `X.ds` is its tokens from n · (seq_len + 1) on (uint16 or uint32, little-endian, no header), seq_len + 1
of them; nanotron feeds all but the last, and the last as the last label. Beside it, `X.ds.index` has the end of each document
in tokens, uint64. Folders count through the samples of their files in the dataset's own order, which it may have shuffled;
`dataset_index` and `dataset_sample_index` of nanotron's Nanoset and BlendableDataset choose a folder and its sample, to which
the latter adds what earlier data stages had of that folder. The arrays and lists of the dataset given are read, never
computed again.

Every sequence is compared with the tokens that stand there. Names come from the sidecar `X.ds.documents.arrow`
(`datatrove_names`). Where `unnamed_ok`, a file without one gives its own name as source, and the document's number in
it, from 0, as id.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.documents.sidecar import Sidecar, sidecar_path
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import Segment

__all__ = ["DatatroveDocuments", "TokenizedFile", "open_tokenized"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedFile:
    """`tokens` of a .ds, and where each document ends in them (exclusive)."""

    path: Path
    tokens: npt.NDArray[np.unsignedinteger[Any]]
    ends: npt.NDArray[np.uint64]


def open_tokenized(path: Path | str, token_size: int) -> TokenizedFile:
    """In place. token_size: bytes, 2 or 4. Raises InputError where file or index are missing, or are not of one another."""
    path = Path(path)
    index = Path(f"{path}.index")
    for needed in (path, index):
        if not needed.is_file():
            raise InputError(
                f"expected {needed}, found none; tokenized files must be local, each with its .index (save_index=True)"
            )
    if token_size not in (2, 4):
        raise InputError(f"{path}: expected tokens of 2 or 4 bytes, found {token_size}")
    tokens = _mapped(path, np.dtype(f"<u{token_size}"))
    ends = _mapped(index, np.dtype("<u8"))
    if (int(ends[-1]) if len(ends) else 0) != len(tokens) or np.any(ends[1:] < ends[:-1]):
        raise InputError(
            f"{index}: expected ends that rise to {len(tokens)}, the tokens of {path.name}, found "
            f"{int(ends[-1]) if len(ends) else 'none'}; it belongs to another file, or token_size is not {token_size}"
        )
    return TokenizedFile(path=path, tokens=tokens, ends=ends)


class DatatroveDocuments:
    """A DocumentResolver; `sample_index` is the index into the dataset given."""

    def __init__(self, dataset: Any, *, unnamed_ok: bool = False) -> None:
        """dataset: DatatroveFileDataset, DatatroveFolderDataset, Nanoset, BlendableDataset, or what has their attributes.

        Raises InputError for another kind, and for files that are not local, lack their index, or have none of its names.
        """
        self._blend = dataset if hasattr(dataset, "dataset_index") else None
        folders = [dataset]
        if self._blend is not None:
            folders = dataset.datatrove_datasets if hasattr(dataset, "datatrove_datasets") else dataset.datasets
        self._folders = [_Folder(folder, unnamed_ok=unnamed_ok) for folder in folders]
        self._offsets = getattr(dataset, "offsets_in_samples", {})

    def segments(self, sample_index: int, tokens: npt.NDArray[np.integer[Any]]) -> Sequence[Segment]:
        """The documents of a sample. Raises InputError where it has other tokens."""
        if self._blend is None:
            return self._folders[0].segments(sample_index, tokens)
        number = int(self._blend.dataset_index[sample_index])
        sample = int(self._blend.dataset_sample_index[sample_index]) + self._offsets.get(number, 0)
        return self._folders[number].segments(sample, tokens)


class _Folder:
    """The files of one folder, in the order of its dataset."""

    def __init__(self, dataset: Any, *, unnamed_ok: bool) -> None:
        files = getattr(dataset, "files", [dataset])
        missing = [name for name in ("seq_len", "token_size", "file_path") for file in files if not hasattr(file, name)]
        if missing or not files:
            raise InputError(
                f"expected a dataset of datatrove's, or nanotron's blend of such, found {type(dataset).__name__} without "
                f"{', '.join(dict.fromkeys(missing)) or 'files'}"
            )
        self._files = [_NamedFile(file, unnamed_ok=unnamed_ok) for file in files]
        self._stops = np.cumsum([len(file) for file in files])

    def segments(self, sample: int, tokens: npt.NDArray[np.integer[Any]]) -> list[Segment]:
        number = int(np.searchsorted(self._stops, sample, side="right"))
        if sample < 0 or number == len(self._files):
            raise InputError(f"expected a sample below {self._stops[-1]}, found {sample}; give the trainer's dataset")
        before = int(self._stops[number - 1]) if number else 0
        return self._files[number].segments(sample - before, tokens)


class _NamedFile:
    """One .ds, and the names of its documents."""

    def __init__(self, dataset: Any, *, unnamed_ok: bool) -> None:
        self._length = int(dataset.seq_len) + 1
        self._file = open_tokenized(_local(dataset), int(dataset.token_size))
        path = self._file.path
        named = sidecar_path(path).is_file() or not unnamed_ok
        self._sidecar = Sidecar(path, Path(f"{path}.index")) if named else None

    def segments(self, sample: int, tokens: npt.NDArray[np.integer[Any]]) -> list[Segment]:
        """tokens: at most seq_len + 1 of them."""
        first = sample * self._length
        stop = first + len(tokens)
        if len(tokens) > self._length or not np.array_equal(self._file.tokens[first:stop], tokens):
            raise InputError(
                f"expected the tokens of {self._file.path} from {first} on, at most {self._length}, found {len(tokens)} "
                "others; give the dataset that the loader reads, and wrap the loader so that sample_index is the index "
                "into it"
            )
        return list(self._within(first, stop))

    def _within(self, first: int, stop: int) -> Iterator[Segment]:
        ends = self._file.ends
        ordinal = int(np.searchsorted(ends, np.uint64(first), side="right"))
        start = first
        while start < stop:
            end = min(int(ends[ordinal]), stop)
            if end > start:  # others are documents without a token
                source, document_id = self._name(ordinal)
                begin = int(ends[ordinal - 1]) if ordinal else 0
                yield Segment(
                    start=start - first, length=end - start, source=source, document_id=document_id,
                    document_token_offset=start - begin,
                )  # fmt: skip
            start = end
            ordinal += 1

    def _name(self, ordinal: int) -> tuple[str, str]:
        return (self._file.path.name, str(ordinal)) if self._sidecar is None else self._sidecar.name(ordinal)


def _mapped(path: Path, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if path.stat().st_size % dtype.itemsize:
        raise InputError(f"{path}: expected whole numbers of {dtype.itemsize} bytes, found {path.stat().st_size} bytes")
    if not path.stat().st_size:  # nothing can be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


def _local(dataset: Any) -> Path:
    """A folder's files know their path below it."""
    below = getattr(getattr(dataset, "fs", None), "path", None)
    return Path(below, dataset.file_path) if below else Path(dataset.file_path)
