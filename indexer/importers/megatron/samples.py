"""Sample n of a Megatron data set, by the index caches that it left beside its description.

`<hash>-GPTDataset-<split>-description.txt` names the PREFIX and the sequence length; `document_index` lists sequences,
`sample_index` where in that list each sample begins (entry, token), `shuffle_index` the order. The description of a
`BlendedDataset` holds those of its data sets; `dataset_index` and `dataset_sample_index` say whose sample n is.

The arrays are read, never computed again. A sample has sequence_length + 1 tokens, the last one of which is a label only.
Documents have the names of the sidecar beside PREFIX.idx, where there is one.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.importers.megatron.indexed import IndexedTokens, open_indexed
from train_hooks.export_format.documents.sidecar import Sidecar, sidecar_path
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import Segment

__all__ = ["Sample", "Samples", "open_samples"]

_ENDING = "-description.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """tokens [sequence_length + 1], and the segments of all but the last of them. where: of what it is a sample."""

    where: str
    tokens: npt.NDArray[np.int64]
    segments: tuple[Segment, ...]


class _GptSamples:
    """One GPTDataset."""

    def __init__(self, description: Path, document: Mapping[str, Any], data_dir: Path | None) -> None:
        self.sequence_length = _number(description, document, "sequence_length")
        prefix = Path(str(document.get("dataset_path")))
        prefix = prefix if data_dir is None else data_dir / prefix.name
        self._indexed: IndexedTokens = open_indexed(prefix)
        self._names = Sidecar(prefix, Path(f"{prefix}.idx")) if sidecar_path(prefix).is_file() else None
        self._documents, self._samples, self._shuffle = (
            _load(description, name) for name in ("document_index", "sample_index", "shuffle_index")
        )
        self._where = description.name.removesuffix(_ENDING)
        for named in (int(self._documents.min(initial=0)), int(self._documents.max(initial=0))):
            if len(self._documents) and not 0 <= named < len(self._indexed.lengths):
                raise self._other_data(f"it names sequence {named} of {len(self._indexed.lengths)}")

    def _other_data(self, why: str) -> InputError:
        return InputError(
            f"{self._where}: the cache does not fit {self._indexed.name}.idx, {why}; is it of other data?"
        )

    def __len__(self) -> int:
        return len(self._shuffle)

    def sample(self, number: int) -> Sample:
        """Raises InputError where the cache is of other data."""
        if not 0 <= number < len(self._shuffle):
            raise self._other_data(f"expected a sample of {len(self._shuffle)}, found {number}")
        place = int(self._shuffle[number])
        if not 0 <= place < len(self._samples) - 1:
            raise self._other_data(f"sample {number} is number {place} of {len(self._samples) - 1}")
        (first, begin), (last, end) = self._samples[place : place + 2].tolist()
        if not 0 <= first <= last < len(self._documents):
            raise self._other_data(f"sample {number} has sequences {first} to {last} of {len(self._documents)}")
        parts: list[npt.NDArray[np.integer]] = []
        segments: list[Segment] = []
        start = 0
        for entry in range(first, last + 1):
            sequence = int(self._documents[entry])
            offset = begin if entry == first else 0
            stop = end + 1 if entry == last else int(self._indexed.lengths[sequence])
            if not 0 <= offset <= stop <= int(self._indexed.lengths[sequence]):
                raise self._other_data(f"sample {number} ends beyond sequence {sequence}")
            parts.append(self._indexed.read(sequence, offset, stop - offset))
            length = min(stop - offset, self.sequence_length - start)
            if length > 0:
                segments.append(self._segment(start, length, sequence, offset))
            start += stop - offset
        if start != self.sequence_length + 1:
            raise self._other_data(f"sample {number} has {start} tokens, not {self.sequence_length + 1}")
        tokens = np.concatenate(parts).astype(np.int64)
        return Sample(where=f"{self._where}, sample {number}", tokens=tokens, segments=tuple(segments))

    def _segment(self, start: int, length: int, sequence: int, offset: int) -> Segment:
        ordinal, before = self._indexed.document(sequence)
        source, document_id = self._names.name(ordinal) if self._names else (self._indexed.name, str(ordinal))
        return Segment(
            start=start, length=length, source=source, document_id=document_id, document_token_offset=before + offset
        )


class _BlendSamples:
    """A BlendedDataset."""

    def __init__(self, description: Path, document: Mapping[str, Any], data_dir: Path | None) -> None:
        wanted = document.get("datasets")
        if not isinstance(wanted, list) or not wanted:
            raise InputError(f'{description}: expected a list "datasets" in it')
        others = {path: _read(path) for path in sorted(description.parent.glob(f"*{_ENDING}")) if path != description}
        self._datasets = []
        for each in wanted:
            found = next((path for path, other in others.items() if other == each), None)
            if found is None:
                path = each.get("dataset_path") if isinstance(each, dict) else each
                raise InputError(f"{description}: the cache of its data set {path} is not beside it")
            self._datasets.append(_GptSamples(found, each, data_dir))
        self._dataset, self._sample = (_load(description, name) for name in ("dataset_index", "dataset_sample_index"))
        size = document.get("size") or len(self._dataset)
        for array in (self._dataset, self._sample):
            if len(array) != size:
                raise InputError(
                    f"{description}: expected {size} samples, as its description says, found {len(array)} in its indices"
                )
        self._where = description.name.removesuffix(_ENDING)
        lengths = {dataset.sequence_length for dataset in self._datasets}
        if len(lengths) != 1:
            raise InputError(f"{description}: expected one sequence length, found {sorted(lengths)}")
        self.sequence_length = lengths.pop()

    def __len__(self) -> int:
        return len(self._dataset)

    def sample(self, number: int) -> Sample:
        """Raises InputError where a cache is of other data."""
        dataset = int(self._dataset[number])
        if not 0 <= dataset < len(self._datasets):
            raise InputError(f"{self._where}: it names sample {number} of data set {dataset}, of {len(self._datasets)}")
        return self._datasets[dataset].sample(int(self._sample[number]))


Samples = _GptSamples | _BlendSamples


def open_samples(description: Path, data_dir: Path | None = None) -> Samples:
    """The samples of a data set or a blend. data_dir: where the tokenized files are now, by their names.

    Raises InputError for a description that is none, or whose caches or tokenized files are missing or of other data.
    """
    document = _read(description)
    match document.get("class"):
        case "BlendedDataset":
            return _BlendSamples(description, document, data_dir)
        case "GPTDataset":
            return _GptSamples(description, document, data_dir)
        case other:
            raise InputError(
                f"{description}: expected the description of a GPTDataset or BlendedDataset, found {other!r}"
            )


def _read(description: Path) -> dict[str, Any]:
    try:
        document = json.loads(description.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{description}: expected a …-description.txt of Megatron's cache, {error}") from error
    if not description.name.endswith(_ENDING) or not isinstance(document, dict):
        raise InputError(f"{description}: expected a …-description.txt of Megatron's cache")
    return document


def _number(description: Path, document: Mapping[str, Any], name: str) -> int:
    found = document.get(name)
    if type(found) is not int or found < 1:
        raise InputError(f'{description}: expected a whole number in "{name}", found {found!r}')
    return found


def _load(description: Path, name: str) -> npt.NDArray[np.integer]:
    path = description.with_name(description.name.removesuffix(_ENDING) + f"-{name}.npy")
    try:
        found: npt.NDArray[np.integer] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: expected an index of Megatron's cache, {error}") from error
    if found.dtype.kind not in "iu" or found.ndim != (2 if name == "sample_index" else 1):
        raise InputError(f"{path}: expected whole numbers, found {found.dtype} {found.shape}")
    return found
