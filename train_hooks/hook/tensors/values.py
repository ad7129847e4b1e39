"""What is a tensor in a micro-batch or a forward's arguments, and which tensor it is.

- Arrays and (nested) lists of numbers are tensors; a list that holds anything else is a container. Strings, lists of
  strings, single numbers and None are neither.
- A sparse tensor is taken dense, a replicated DTensor as its local tensor, a subclass as what it holds. What has no bytes to
  record, such as a nested tensor or a ragged list, is said in words.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from train_hooks.export_format.errors import InputError

__all__ = ["CONTAINER", "NOTHING", "TENSOR", "declared_tensor", "kind_of", "tensor_of"]

TENSOR, CONTAINER, NOTHING = "tensor", "container", "nothing"
_MAX_DIMENSIONS = 8
_NUMBERS = (int, float, complex, np.number, np.bool_)
_SCALARS = (str, bytes, int, float, complex, type(None), np.generic)
_STRIDED = torch.strided
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor  # by vmap, grad and their like


def kind_of(value: Any) -> str:
    """TENSOR, CONTAINER or NOTHING."""
    if isinstance(value, Tensor):
        return TENSOR
    if isinstance(value, _SCALARS):
        return NOTHING
    if isinstance(value, np.ndarray):
        return TENSOR if value.dtype.kind in "biufc" else NOTHING
    return _kind_of_list(value) if _is_list(type(value)) else CONTAINER


def _is_list(kind: type) -> bool:
    return issubclass(kind, list | tuple) and not hasattr(kind, "_fields") and kind is not torch.Size


def _kind_of_list(value: Sequence[Any]) -> str:
    kinds = _item_types(value, _MAX_DIMENSIONS)
    if not all(issubclass(kind, _SCALARS) for kind in kinds):
        return CONTAINER
    if not any(issubclass(kind, _NUMBERS) for kind in kinds):
        return NOTHING
    return CONTAINER if any(issubclass(kind, str | bytes) for kind in kinds) else TENSOR


def _item_types(value: Sequence[Any], depth: int) -> set[type]:
    """Types of the items of a list, and of the lists in it."""
    kinds = set(map(type, value))
    lists = {kind for kind in kinds if _is_list(kind)}
    if lists and not depth:
        return {object}
    if lists:
        kinds -= lists
        for item in value:
            if type(item) in lists:
                kinds |= _item_types(item, depth - 1)
    return kinds


def tensor_of(value: Any, *, for_record: bool) -> Tensor | str:
    """A tensor whose bytes can be looked at, or in words why there is none. for_record: not only to be compared."""
    if (
        type(value) is Tensor
        and value.layout is _STRIDED
        and not (value.is_nested or value.is_quantized or value.is_meta)
        and (for_record or not _is_wrapped(value))
    ):
        return value
    if isinstance(value, Tensor):
        return _unwrapped(value, for_record=for_record)
    return _from_array(value) if isinstance(value, np.ndarray) else _from_list(value)


def _unwrapped(tensor: Tensor, *, for_record: bool) -> Tensor | str:
    while _is_wrapped(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    kind = type(tensor)
    if tensor.is_nested:
        return "expected a tensor, found a nested tensor, whose rows differ in length; pad it: .to_padded_tensor(0)"
    to_local = getattr(tensor, "to_local", None)
    if to_local is not None:
        placements = getattr(tensor, "placements", ())
        if for_record and not all(placement.is_replicate() for placement in placements):
            return f"expected a tensor, found a DTensor that is not replicated {placements}; give its .full_tensor()"
        return tensor_of(to_local(), for_record=for_record)
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"expected a tensor, found a {kind.__name__}, whose values cannot be read; give the tensor in it"
    if tensor.is_quantized:
        return "expected a tensor, found a quantized tensor; give its values: .dequantize() or .int_repr()"
    if tensor.is_meta:
        return "expected a tensor, found a meta tensor, which has no values; load it to a device"
    if tensor.layout is not _STRIDED:
        tensor = tensor.to_dense()
    return tensor if type(tensor) is Tensor else tensor.as_subclass(Tensor)


def _from_array(array: npt.NDArray[Any]) -> Tensor | str:
    native = np.dtype(array.dtype.newbyteorder("=").str)
    if native.itemsize > (16 if native.kind == "c" else 8):
        return f"expected numbers of a dtype that torch has, found {native.type.__name__}; give float64 or complex128"
    fits = all(stride >= 0 and stride % native.itemsize == 0 for stride in array.strides)
    if not (fits and array.flags.writeable and array.flags.aligned and array.dtype == native):
        array = np.array(array, native, order="C")
    return torch.from_numpy(array.view(native))  # numpy has two types of one name, of which torch knows one: ulonglong


def _from_list(value: Sequence[Any]) -> Tensor | str:
    kinds = _item_types(value, _MAX_DIMENSIONS)
    if type(None) in kinds:
        return "expected numbers, found None among numbers; give a number in its place"
    try:
        array = np.asarray(value)
    except OverflowError:
        return "expected numbers, found integers beyond 64 bits"
    except ValueError:
        return f"expected rows of one length, found {_ragged_text(value)}; pad them"
    integers = all(issubclass(kind, int | np.integer | np.bool_) for kind in kinds)
    if array.dtype.kind == "O" or (integers and array.dtype.kind not in "biu"):
        return "expected numbers, found integers beyond 64 bits"
    return _from_array(array)


def _ragged_text(value: Sequence[Any]) -> str | None:
    """In words what a ragged list holds side by side."""
    lengths = sorted({len(item) for item in value if _is_list(type(item))})
    if lengths and not all(_is_list(type(item)) for item in value):
        return "a number beside a list of numbers"
    if len(lengths) > 1:
        return f"lists of lengths {', '.join(map(str, lengths[:-1]))} and {lengths[-1]} beside one another"
    return next((found for item in value if lengths and (found := _ragged_text(item))), None)


def declared_tensor(name: str, value: Any) -> Tensor:
    """What `hook.trained_on` is given under a name. Raises InputError for what holds no numbers."""
    if isinstance(value, Tensor):
        return value
    try:
        return torch.from_numpy(np.array(value))
    except (TypeError, ValueError) as error:
        raise InputError(f"trained_on: expected numbers [num_slots, …] for {name!r}, found {error}") from error
