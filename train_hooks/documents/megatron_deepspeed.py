"""Megatron-DeepSpeed's indices, read as Megatron's: its GPTDataset and BlendableDataset under the names of megatron.core.

    resolver = MegatronDocuments(as_megatron(train_dataset))

The arrays are those that the loader reads: `*_doc_idx.npy`, `*_sample_idx.npy` and `*_shuffle_idx.npy` of the index cache,
and the blend's `dataset_index` and `dataset_sample_index`. Whether they go with the tokens, is compared for every sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from train_hooks.export_format.errors import InputError

__all__ = ["Blend", "IndexedSamples", "Tokens", "as_megatron"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """PREFIX.bin and PREFIX.idx: an MMapIndexedDataset."""

    path_prefix: str
    document_indices: Any
    sequence_lengths: Any
    get: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedSamples:
    """A GPTDataset. Samples have a token more than the sequence length, which is the next one's first."""

    document_index: Any
    sample_index: Any
    shuffle_index: Any
    dataset: Tokens
    config: Any = field(default_factory=lambda: SimpleNamespace(add_extra_token_to_sequence=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class Blend:
    """A BlendableDataset."""

    datasets: Sequence[IndexedSamples]
    dataset_index: Any
    dataset_sample_index: Any


def as_megatron(dataset: Any) -> Blend | IndexedSamples:
    """Raises InputError for what is neither a GPTDataset nor a BlendableDataset of them, both of Megatron-DeepSpeed."""
    try:
        if hasattr(dataset, "datasets"):
            return Blend(
                datasets=[_samples(each) for each in dataset.datasets],
                dataset_index=dataset.dataset_index,
                dataset_sample_index=dataset.dataset_sample_index,
            )
        return _samples(dataset)
    except AttributeError as error:
        raise InputError(
            f"expected Megatron-DeepSpeed's GPTDataset, or a BlendableDataset of them, found {type(dataset).__name__}: {error}"
        ) from error


def _samples(dataset: Any) -> IndexedSamples:
    indexed = dataset.indexed_dataset
    return IndexedSamples(
        document_index=dataset.doc_idx,
        sample_index=dataset.sample_idx,
        shuffle_index=dataset.shuffle_idx,
        dataset=Tokens(
            path_prefix=indexed._path,
            document_indices=indexed.doc_idx,
            sequence_lengths=indexed.sizes,
            get=indexed.get,
        ),
    )
