"""Megatron's indices: which documents, and from which of their tokens on, are in sample n of a GPTDataset or a blend.

    resolver = MegatronDocuments(train_dataset)          # megatron.core's BlendedDataset or GPTDataset
    ExportHook.attach(…, documents=resolver)

The very arrays that the loader reads are read here, never computed again: another number of epochs already shuffles them
differently. `dataset_index, dataset_sample_index` of the blend choose a dataset and its sample; `shuffle_index` the place
j of that sample; `sample_index[j]` and `[j + 1]` say where it begins and ends in `document_index`, whose entries are
sequences of PREFIX.idx. Its `document_indices` tell which document a sequence belongs to; documents without a token have
a number too.

Every sequence is compared with the tokens that stand there, so that indices of other data are found out. Names come from
the sidecar of each PREFIX (`megatron_preprocessing`). Where `unnamed_ok`, a PREFIX without one gives its own name as
source and the document's number as id.
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

__all__ = ["MegatronDocuments", "Part"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """`length` tokens from `offset` on of one document, at `start` in the sample. ordinal: the document's, from 0."""

    start: int
    length: int
    ordinal: int
    offset: int

    def after(self, begin: int) -> "Part | None":
        """What of it stands from `begin` on in the sample, which `start` counts from then."""
        cut = max(0, begin - self.start)
        if cut >= self.length:
            return None
        return Part(
            start=self.start + cut - begin, length=self.length - cut, ordinal=self.ordinal, offset=self.offset + cut
        )


class MegatronDocuments:
    """A DocumentResolver; `sample_index` is the index into the dataset given."""

    def __init__(self, dataset: Any, *, unnamed_ok: bool = False) -> None:
        """dataset: BlendedDataset or GPTDataset of megatron.core, or what has their attributes.

        Raises InputError where it has none, and for a PREFIX whose sidecar is missing or another's.
        """
        self._blend = dataset if hasattr(dataset, "datasets") else None
        datasets = dataset.datasets if self._blend is not None else [dataset]
        self._indexed = [_IndexedSamples(each, unnamed_ok=unnamed_ok) for each in datasets]

    def segments(self, sample_index: int, tokens: npt.NDArray[np.integer[Any]]) -> Sequence[Segment]:
        """The documents of a sample. Raises InputError where it has other tokens."""
        return self.segments_of_part(sample_index, 0, tokens)

    def segments_of_part(
        self, sample_index: int, sample_start: int, tokens: npt.NDArray[np.integer[Any]]
    ) -> Sequence[Segment]:
        """The documents of a sample's tokens from `sample_start` on. Raises InputError where it has other tokens."""
        number, sample = self.place(sample_index)
        indexed = self._indexed[number]
        parts = [
            later for part in indexed.parts(sample, sample_start + len(tokens)) if (later := part.after(sample_start))
        ]
        indexed.check(sample_index, parts, tokens)
        return [indexed.segment(part) for part in parts]

    def place(self, sample_index: int) -> tuple[int, int]:
        """Number of the dataset in the blend, and index into that dataset."""
        if self._blend is None:
            return 0, sample_index
        number = _array(self._blend, "dataset_index")[sample_index]
        return int(number), int(_array(self._blend, "dataset_sample_index")[sample_index])


class _IndexedSamples:
    """One GPTDataset over one PREFIX.bin and PREFIX.idx."""

    def __init__(self, dataset: Any, *, unnamed_ok: bool) -> None:
        missing = [
            name
            for name in ("shuffle_index", "sample_index", "document_index", "dataset")
            if not hasattr(dataset, name)
        ]
        if missing:
            raise InputError(
                f"expected a GPTDataset or a BlendedDataset of them, found {type(dataset).__name__} without "
                f"{', '.join(missing)}"
            )
        self._dataset = dataset
        self._tokens = dataset.dataset  # the IndexedDataset
        self._pad = getattr(dataset, "_pad_token_id", None)
        self._first_sequences = np.asarray(self._tokens.document_indices)
        self._lengths = self._tokens.sequence_lengths
        prefix = str(self._tokens.path_prefix)
        named = sidecar_path(prefix).is_file() or not unnamed_ok
        self._sidecar = Sidecar(prefix, Path(f"{prefix}.idx")) if named else None
        self._own_name = Path(prefix).name

    def parts(self, sample: int, length: int) -> list[Part]:
        """What is in the first `length` tokens of a sample; padding is in no part."""
        place = int(_array(self._dataset, "shuffle_index")[sample])
        (first, begin), (last, end) = _array(self._dataset, "sample_index")[place : place + 2].tolist()
        sequences = _array(self._dataset, "document_index")[first : last + 1].tolist()
        extra = int(getattr(self._dataset.config, "add_extra_token_to_sequence", True))
        return list(self._cut(sequences, begin, end + extra, length))

    def _cut(self, sequences: Sequence[int], begin: int, end: int, length: int) -> Iterator[Part]:
        start = 0
        for number, sequence in enumerate(sequences):
            first = begin if number == 0 else 0
            stop = (
                min(end, int(self._lengths[sequence])) if number == len(sequences) - 1 else int(self._lengths[sequence])
            )
            taken = min(stop - first, length - start)
            if taken > 0:
                ordinal, before = self._document(sequence)
                yield Part(start=start, length=taken, ordinal=ordinal, offset=before + first)
                start += taken

    def _document(self, sequence: int) -> tuple[int, int]:
        """The document that a sequence belongs to, and how many of its tokens stand in earlier sequences of it."""
        ordinal = int(np.searchsorted(self._first_sequences, sequence, side="right")) - 1
        first = int(self._first_sequences[ordinal])
        return ordinal, int(self._lengths[first:sequence].sum()) if first < sequence else 0

    def check(self, sample_index: int, parts: Sequence[Part], tokens: npt.NDArray[np.integer[Any]]) -> None:
        """Raises InputError unless the model was fed the tokens of these parts. Padding tokens are fed as 0."""
        for part in parts:
            ours = self._read(part)
            fed = tokens[part.start : part.start + part.length]
            if np.array_equal(ours, fed) or np.array_equal(np.where(ours == self._pad, 0, ours), fed):
                continue
            raise InputError(
                f"sample {sample_index}: expected the tokens of document {part.ordinal} of {self._tokens.path_prefix} from "
                f"{part.offset} on, found others; give the dataset that the loader reads, and wrap the loader so that "
                "sample_index is the index into it"
            )

    def _read(self, part: Part) -> npt.NDArray[np.integer[Any]]:
        first = int(self._first_sequences[part.ordinal])
        offset = part.offset
        while offset >= int(self._lengths[first]):
            offset -= int(self._lengths[first])
            first += 1
        found: npt.NDArray[np.integer[Any]] = self._tokens.get(first, offset=offset, length=part.length)
        return found

    def segment(self, part: Part) -> Segment:
        """The part, by its document's name."""
        if self._sidecar is None:
            source, document_id = self._own_name, str(part.ordinal)
        else:
            source, document_id = self._sidecar.name(part.ordinal)
        return Segment(
            start=part.start, length=part.length, source=source, document_id=document_id,
            document_token_offset=part.offset,
        )  # fmt: skip


def _array(owner: Any, name: str) -> Any:
    """An index of a dataset; with --defer-npy-index-mmap it is None until the first sample, and then only in that process."""
    found = getattr(owner, name)
    if found is None:
        found = np.load(getattr(owner, f"path_to_{name}"), mmap_mode="r")
        setattr(owner, name, found)
    return found
