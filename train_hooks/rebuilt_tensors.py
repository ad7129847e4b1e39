"""From rows back to the tensors of a micro-batch: the inverse of what `snapshots` and `row_builder` do."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import Row
from train_hooks.export_format.tensors import decode_tensor
from train_hooks.row_builder import WHOLE_MICROBATCH

__all__ = ["rebuilt_tensors"]

_DEFAULT_TOKENS_KEY = "input_ids"


def rebuilt_tensors(rows: Sequence[Row], *, as_recorded: bool) -> dict[str, Tensor]:
    """Name → tensor [num_slots, …], as the loader yielded them, of the rows of one micro-batch.

    as_recorded: whether it is one of the recorded micro-batches; tensors of a micro-batch as a whole exist only there.
    Raises InputError for rows that do not fit together.
    """
    whole, columns = {}, []
    for row in rows:
        arrays = {record.name: decode_tensor(record, row.tokens, row.segments) for record in row.tensors}
        if not any(record.encoding == "tokens" for record in row.tensors) and not _holds_tokens(arrays, row):
            arrays[_DEFAULT_TOKENS_KEY] = row.tokens.astype(np.int64)
        whole.update({name: arrays.pop(name) for name in list(arrays) if name.startswith(WHOLE_MICROBATCH)})
        columns.append(arrays)
    if whole and not as_recorded:
        raise InputError(
            f"{', '.join(sorted(whole))}: a tensor of the micro-batch as a whole cannot be dealt out anew; replay the "
            "recorded layout"
        )
    stacked = {name: np.stack([arrays[name] for arrays in columns]) for name in _common_names(rows, columns)}
    stacked.update({name.removeprefix(WHOLE_MICROBATCH): np.array(array) for name, array in whole.items()})
    return dict(_with_dtype(name, torch.from_numpy(array)) for name, array in stacked.items())


def _holds_tokens(arrays: Mapping[str, Any], row: Row) -> bool:
    return any(np.array_equal(array, row.tokens) for array in arrays.values())


def _common_names(rows: Sequence[Row], columns: Sequence[Mapping[str, Any]]) -> list[str]:
    for row, arrays in zip(rows, columns, strict=True):
        same = arrays.keys() == columns[0].keys()
        if not same or any(arrays[name].shape != columns[0][name].shape for name in arrays):
            raise InputError(
                f"{row.address} has other tensors than {rows[0].address}; sequences of different micro-batches cannot be "
                "put into one, replay the recorded layout"
            )
    return sorted(columns[0]) if columns else []


def _with_dtype(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Undo the spelling of dtypes that numpy lacks: `mask:bfloat16` holds the bits of a bfloat16."""
    stem, _, suffix = name.rpartition(":")
    dtype = getattr(torch, suffix, None) if stem else None
    return (stem, tensor.view(dtype)) if isinstance(dtype, torch.dtype) else (name, tensor)
