"""What a loader yields, as named tensors.

A micro-batch may be a dict (or another Mapping), a tuple, a list, a named tuple, a dataclass, an object with attributes,
a bare tensor, or these in one another. Every tensor in it has a name: its key, field or index, joined by dots
(`input_ids`, `0`, `0.positions`). A bare tensor is called `input_ids`. `segments` (a list of `Segment` for each slot),
`sample_index` and `sample_start` (an integer for each slot) are the hook's own, wherever they stand in a dict.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from train_hooks.export_format.errors import InputError

__all__ = ["METADATA_KEYS", "NamedTensors", "TokensSelector", "name_tensors", "plain_tensors", "without_metadata"]

METADATA_KEYS = ("segments", "sample_index", "sample_start")
_MAX_DEPTH = 4
_SCALARS = (str, bytes, int, float, complex, type(None))
TokensSelector = str | int | Callable[[Any], Tensor]


class NamedTensors(NamedTuple):
    """A micro-batch taken apart. `tokens` is the name of the token tensor, integers [num_slots, length]."""

    tokens: str
    tensors: Mapping[str, Tensor]
    segments: Any
    sample_index: Any
    sample_start: Any = None


def name_tensors(batch: Any, tokens: TokensSelector) -> NamedTensors:
    """Take `batch` apart. Raises InputError where there are no integers of two dimensions at `tokens`."""
    if type(batch) is dict and type(tokens) is str and _is_plain(batch):  # the usual case, told fast
        tensors: dict[str, Tensor] = batch.copy()
        return _checked(batch, tokens, tokens, tensors, {})
    tensors = {}
    metadata: dict[str, Any] = {}
    _walk(batch, "", tensors, metadata, _MAX_DEPTH)
    return _checked(batch, tokens, _tokens_name(batch, tokens, tensors), tensors, metadata)


def _is_plain(batch: dict[Any, Any]) -> bool:
    """Whether it has nothing but tensors, by names."""
    for key, value in batch.items():  # noqa: SIM110  a generator would cost more
        if type(value) is not Tensor or type(key) is not str or key in METADATA_KEYS:
            return False
    return True


def _checked(
    batch: Any, tokens: TokensSelector, name: str, tensors: dict[str, Tensor], metadata: Mapping[str, Any]
) -> NamedTensors:
    found = tensors.get(name)
    if found is None:
        raise InputError(
            f"expected micro-batches with token ids at {tokens!r}, found {type(batch).__name__} with tensors "
            f"{', '.join(tensors) or 'none'}; name the token tensor: hook.wrap(loader, tokens=key, index or function)"
        )
    if found.ndim != 2 or found.is_floating_point() or found.is_complex() or found.dtype is torch.bool:
        raise InputError(
            f"expected integers [num_slots, sequence_length] at {name!r}, found {found.dtype} {list(found.shape)}"
        )
    return NamedTensors(
        name, tensors, metadata.get("segments"), metadata.get("sample_index"), metadata.get("sample_start")
    )


def _tokens_name(batch: Any, tokens: TokensSelector, tensors: Mapping[str, Tensor]) -> str:
    if isinstance(tokens, str):
        return tokens
    if isinstance(tokens, int):
        fields = getattr(type(batch), "_fields", None)
        return fields[tokens] if fields else str(tokens % len(batch) if isinstance(batch, Sequence) else tokens)
    chosen = tokens(batch)
    for name, tensor in tensors.items():
        if tensor is chosen:
            return name
    raise InputError(
        "tokens: the function gave a tensor that is not in the micro-batch; it must return one of its tensors, "
        f"found {', '.join(tensors) or 'none'}"
    )


def plain_tensors(values: Any) -> list[Tensor]:
    """Every tensor in `values` whose bytes can be looked at; a replicated DTensor counts as its local tensor."""
    found: dict[str, Tensor] = {}
    _walk(values, "", found, {}, _MAX_DEPTH)
    return [local for tensor in found.values() if type(local := _local(tensor)) is Tensor]


def _local(tensor: Tensor) -> Tensor:
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def _walk(value: Any, name: str, tensors: dict[str, Tensor], metadata: dict[str, Any], depth: int) -> None:
    if isinstance(value, Tensor):
        tensors[name or "input_ids"] = value
        return
    for key, item in value.items() if type(value) is dict else _items(value):
        if isinstance(item, Tensor) and key not in METADATA_KEYS:
            tensors[f"{name}.{key}" if name else str(key)] = item
        elif key in METADATA_KEYS:
            metadata[key] = item
        elif isinstance(item, np.ndarray) and item.dtype.kind in "biuf" and item.flags.writeable:
            tensors[f"{name}.{key}" if name else str(key)] = torch.from_numpy(item)
        elif depth and not isinstance(item, _SCALARS):
            _walk(item, f"{name}.{key}" if name else str(key), tensors, metadata, depth - 1)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, tuple | list):
        if value and not isinstance(value[0], _SCALARS):
            yield from enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield field.name, getattr(value, field.name, None)
    elif hasattr(value, "__dict__") and not callable(value):
        yield from vars(value).items()


def without_metadata(batch: Any) -> Any:
    """`batch` for the trainer: the same object where it has no metadata in its dicts, else a shallow copy without."""
    if isinstance(batch, Mapping):
        changed = {key: without_metadata(value) for key, value in batch.items() if key not in METADATA_KEYS}
        if len(changed) == len(batch) and all(changed[key] is batch[key] for key in changed):
            return batch
        if type(batch) is dict or not isinstance(batch, MutableMapping):
            return changed
        other = copy.copy(batch)
        for key in [key for key in batch if key not in changed]:
            del other[key]
        other.update({key: value for key, value in changed.items() if value is not batch[key]})
        return other
    if type(batch) in (tuple, list) and any(isinstance(item, Mapping) for item in batch):
        return type(batch)(without_metadata(item) for item in batch)
    return batch
