"""Documents and sample indices on their way from a dataset's items to the hook, through any loader and collate function.

    loader = DataLoader(Indexed(dataset), collate_fn=CarryingDocuments(collate), …)

An item is a dict that may have `segments` (its documents: a list of `Segment`) and `sample_index` (its number in the
data). Collate functions know neither. `CarryingDocuments` takes both out of the items, and puts them beside what the
collate function made of the rest; the hook takes them out again before the model sees the micro-batch.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from train_hooks.export_format.records import Segment

__all__ = ["CarryingDocuments", "Indexed", "SegmentsOfSlots"]


class SegmentsOfSlots:
    """The segments of each slot. Opaque to frameworks, which walk through lists and dataclasses to find tensors."""

    def __init__(self, slots: Sequence[Sequence[Segment]]) -> None:
        self._slots = slots

    def __iter__(self) -> Iterator[Sequence[Segment]]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)


class CarryingDocuments:
    """A collate function that lets documents through. `collate`: of a list of dicts, to a dict."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], Any]) -> None:
        self._collate = collate

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> Any:
        """The collated rest, with `segments` and `sample_index` where every item has them."""
        batch = self._collate([_without_metadata(item) for item in items])
        if all("segments" in item for item in items):
            batch["segments"] = SegmentsOfSlots([list(item["segments"]) for item in items])
        if all("sample_index" in item for item in items):
            batch["sample_index"] = [int(item["sample_index"]) for item in items]
        return batch


def _without_metadata(item: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in ("segments", "sample_index")}


class Indexed:
    """A map-style dataset whose items (dicts) say their index as `sample_index`. All else is the dataset's own."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self._dataset[index], "sample_index": index}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":  # looked for while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self._dataset, name)
