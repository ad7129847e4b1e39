"""llm-foundry's text dataloader, whose samples say where they come from. (Its trainer is Composer: `adapters.composer`.)

    train_loader:
      name: text_with_documents        # registered where kiseki is installed; all else as for `text`
      source_column: source            # columns of the MDS samples that `text` drops
      id_column: id

It is what llm-foundry's own `build_text_dataloader` builds. `sample_index` is the sample's number in the StreamingDataset
(`documents.mds.MdsPlaces`: its shard and row there). Its documents are those of the column `segments`, which
`documents.mds.concatenated` writes; where there is none, its own columns name it, as one document from its first token that
is not padding to its last. Where a sample names nobody, `unnamed_ok` gives a text its shard and row as
id (`shard.00000.mds#17`), and tokens no segments; else it is refused.

Names are read in the loader's workers, out of the very sample that is read for its tokens: with `cache_limit` its shard
may be gone when the writer thread would ask.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmfoundry.data import StreamingTextDataset, build_text_dataloader

from train_hooks.adapters.versions import require_version
from train_hooks.documents.in_batches import CarryingDocuments
from train_hooks.documents.mds import MdsPlaces, segments_of_column
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import Segment

__all__ = ["build_text_dataloader_with_documents"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Names:
    """Where a sample's names stand."""

    source_column: str
    id_column: str
    unnamed_ok: bool
    places: MdsPlaces
    stream_names: list[str]


@dataclass(frozen=True, slots=True)
class _Read:
    """A sample's columns, and what llm-foundry makes of them."""

    sample: Mapping[str, Any]
    item: Any


class _NamedTextDataset(StreamingTextDataset):
    """Items are dicts: `item`, llm-foundry's own, `sample_index`, `segments`."""

    names: _Names

    def _tokenize(self, text_sample: Mapping[str, Any]) -> Any:
        return _Read(text_sample, super()._tokenize(text_sample))

    def _read_binary_tokenized_sample(self, sample: dict[str, Any]) -> Any:
        return _Read(sample, super()._read_binary_tokenized_sample(sample))

    def __getitem__(self, idx: int) -> Any:
        read = super().__getitem__(idx)
        segments = self._segments(int(idx), read.sample, read.item)
        return {"item": read.item, "sample_index": int(idx), "segments": segments}

    def _segments(self, index: int, sample: Mapping[str, Any], item: Any) -> list[Segment]:
        names = self.names
        if "segments" in sample:
            return segments_of_column(sample["segments"], len(item))
        named = names.source_column in sample and names.id_column in sample
        if not named and not names.unnamed_ok:
            raise InputError(
                f"sample {index}: expected a column segments, or {names.source_column} and {names.id_column}, found "
                f"{', '.join(sample)}; name the columns (source_column, id_column), write them (documents.mds), or give "
                "unnamed_ok"
            )
        if named:
            return _whole(item, str(sample[names.source_column]), str(sample[names.id_column]))
        if "text" not in sample:
            return []
        place = names.places.place(index)
        return _whole(item, names.stream_names[place.stream], f"{place.shard}#{place.row}")


def _whole(item: Any, source: str, document_id: str) -> list[Segment]:
    """All of a sample but padding, as one document from its beginning on."""
    mask = item["attention_mask"] if isinstance(item, Mapping) else [1] * len(item)
    if not sum(mask):
        return []
    return [
        Segment(
            start=mask.index(1), length=sum(mask), source=source, document_id=document_id, document_token_offset=0
        )
    ]  # fmt: skip


class _CollateItems:
    """llm-foundry's collator, of items in a dict."""

    def __init__(self, collate: Any) -> None:
        self._collate = collate

    def __call__(self, items: list[dict[str, Any]]) -> Any:
        return self._collate([item["item"] for item in items])


def build_text_dataloader_with_documents(
    *, source_column: str = "source", id_column: str = "id", unnamed_ok: bool = False, **configuration: Any
) -> Any:
    """The DataSpec of llm-foundry's `build_text_dataloader(**configuration)`, with documents in its batches.

    Raises InputError for a version of llm-foundry that is not known.
    """
    require_version("llm-foundry", "0.22", "0.23")
    spec = build_text_dataloader(**configuration)
    loader: Any = spec.dataloader
    dataset = loader.dataset
    dataset.__class__ = _NamedTextDataset  # the builder, which is llm-foundry's, names its own class
    dataset.names = _Names(
        source_column=source_column, id_column=id_column, unnamed_ok=unnamed_ok,
        places=MdsPlaces(Path(stream.local) / (stream.split or "") for stream in dataset.streams),
        stream_names=[Path(stream.remote or stream.local).name for stream in dataset.streams],
    )  # fmt: skip
    loader.collate_fn = CarryingDocuments(_CollateItems(loader.collate_fn))
    spec.get_num_samples_in_batch = lambda batch: len(batch["input_ids"])
    return spec
