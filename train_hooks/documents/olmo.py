"""OLMo-core's token files: which documents are in instance n of a NumpyFSLDataset.

    resolver = OlmoDocuments(dataset, corpus="s3://bucket/dolma")
    ExportHook.attach(…, documents=resolver)

Instance n is `sequence_length` tokens of one `.npy` file, found by `dataset.offsets`; its documents stand in the `.csv.gz`
beside it, and `dolma_files` names them. They stand in memory, about 100 bytes each, once an instance of their file was seen.

Every instance is compared with the tokens that stand there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.documents.dolma_files import (
    TokenFileDocuments,
    names_path,
    require_below,
    token_file_documents,
)
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import Segment

__all__ = ["OlmoDocuments"]

_SUPPORTED = "NumpyFSLDataset"


class OlmoDocuments:
    """A DocumentResolver; `sample_index` is the index into the dataset given, `index` in OLMo-core's batches."""

    def __init__(self, dataset: Any, *, corpus: str) -> None:
        """corpus: where the texts were when they were tokenized, a directory or an address as in `src` of the `.csv.gz`.

        Raises InputError for another kind of dataset, for files that are not local or lack their `.csv.gz`, and for texts
        that were elsewhere, as the first document of each file says.
        """
        if type(dataset).__name__ != _SUPPORTED:
            raise InputError(
                f"expected a {_SUPPORTED}, found a {type(dataset).__name__}, which packs documents another way; "
                "find_documents=False leaves them out (and shorter_rows=True takes sequences of differing lengths)"
            )
        self._dataset, self._corpus = dataset, corpus
        self._last = np.array([end for _, end in dataset.offsets])
        self._files: dict[int, tuple[npt.NDArray[np.unsignedinteger[Any]], TokenFileDocuments]] = {}
        for path in map(Path, dataset.paths):
            for needed in (path, names_path(path)):
                if not needed.is_file():
                    raise InputError(f"expected {needed}, found none; token files must be local, each with its .csv.gz")
            require_below(path, corpus)

    def segments(self, sample_index: int, tokens: npt.NDArray[np.integer[Any]]) -> Sequence[Segment]:
        """The documents of an instance. Raises InputError where it has other tokens."""
        number = int(np.searchsorted(self._last, sample_index, side="right"))
        if number == len(self._last):
            raise InputError(
                f"expected an instance below {self._last[-1]}, found {sample_index}; give the trainer's dataset"
            )
        first = (sample_index - self._dataset.offsets[number][0]) * len(tokens)
        stored, documents = self._file(number)
        if not np.array_equal(stored[first : first + len(tokens)], tokens):
            raise InputError(
                f"instance {sample_index}: expected the tokens of {self._dataset.paths[number]} from {first} on, found "
                "others; give the dataset that the trainer reads"
            )
        return documents.segments(first, len(tokens))

    def _file(self, number: int) -> tuple[npt.NDArray[np.unsignedinteger[Any]], TokenFileDocuments]:
        found = self._files.get(number)
        if found is None:
            path = Path(self._dataset.paths[number])
            tokens = np.memmap(path, dtype=self._dataset.dtype, mode="r")
            found = self._files[number] = (tokens, token_file_documents(path, len(tokens), self._corpus))
        return found
