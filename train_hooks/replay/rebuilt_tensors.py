"""From rows back to the tensors of a micro-batch: the inverse of what `snapshots` and `row_builder` do."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import Row
from train_hooks.export_format.tensors import as_current_tensor, bits_dtype, decode_tensor

__all__ = ["rebuilt_tensors"]

_DEFAULT_TOKENS_KEY = "input_ids"


def rebuilt_tensors(rows: Sequence[Row], *, as_recorded: bool) -> dict[str, Tensor]:
    """Name → tensor [num_slots, …], as the loader yielded them, of the rows of one micro-batch.

    as_recorded: whether it is one of the recorded micro-batches; tensors of a micro-batch as a whole exist only there.
    Raises InputError for rows that do not fit together.
    """
    whole: dict[str, Any] = {}
    columns: list[dict[str, Any]] = []
    dtypes: dict[str, str] = {}
    for row in rows:
        of_row: dict[str, Any] = {}
        for record in row.tensors:
            known = as_current_tensor(record, row.format_version)
            (whole if known.whole else of_row)[known.name] = decode_tensor(record, row.tokens, row.segments)
            if bits_dtype(known.dtype) is not None:
                dtypes[known.name] = known.dtype
        if not any(record.encoding == "tokens" for record in row.tensors) and not _holds_tokens(of_row, row):
            of_row[_DEFAULT_TOKENS_KEY] = row.tokens.astype(np.int64)
        columns.append(of_row)
    if whole and not as_recorded:
        raise InputError(
            f"{', '.join(sorted(whole))}: a tensor of the micro-batch as a whole cannot be dealt out anew; replay the "
            "recorded layout"
        )
    stacked = {name: np.stack([arrays[name] for arrays in columns]) for name in _common_names(rows, columns)}
    stacked.update({name: np.array(array) for name, array in whole.items()})
    return {name: _with_dtype(torch.from_numpy(array), dtypes.get(name)) for name, array in stacked.items()}


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


def _with_dtype(tensor: Tensor, name: str | None) -> Tensor:
    """The tensor whose bits these are."""
    return tensor if name is None else tensor.view(getattr(torch, name))
