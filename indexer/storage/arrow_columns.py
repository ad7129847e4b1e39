"""Arrow columns as numpy arrays, and comparing them to a text, without pandas.

pyarrow imports pandas, where it is installed, the first time that it makes an array or a scalar of Python's or numpy's
objects, and for `to_numpy`. That takes a third of a second, as long as all the rest of a small search. So what every
question needs goes through here. What is computed once a shard, or for a report, may use `to_numpy`.
"""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["equals", "is_among", "numbers_of"]

Column: TypeAlias = pa.ChunkedArray | pa.Array


def numbers_of(column: Column) -> npt.NDArray[Any]:
    """The numbers or booleans of a column, [n], of its own dtype, read-only. Raises ValueError for nulls."""
    if column.null_count:
        raise ValueError(f"expected a column without nulls, found {column.null_count} among {len(column)}")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    arrays = [_numbers_of_chunk(chunk) for chunk in chunks if len(chunk)]
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.zeros(0, column.type.to_pandas_dtype())


def _numbers_of_chunk(chunk: pa.Array) -> npt.NDArray[Any]:
    values, first = chunk.buffers()[1], chunk.offset
    if pa.types.is_boolean(chunk.type):
        bits = np.unpackbits(np.frombuffer(values, np.uint8), count=first + len(chunk), bitorder="little")
        return bits[first:].view(np.bool_)
    dtype = np.dtype(chunk.type.to_pandas_dtype())
    return np.frombuffer(values, dtype, len(chunk), first * dtype.itemsize)


def equals(column: Column, text: str) -> npt.NDArray[np.bool_]:
    """Whether each text of a column of strings is `text`, bool [n]. Raises ValueError for nulls."""
    return numbers_of(pc.equal(column, _strings([text])[0])).view(np.bool_)


def is_among(column: Column, texts: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Whether each text of a column of strings is one of `texts`, bool [n]; null is none of them."""
    return numbers_of(pc.is_in(column, value_set=_strings(sorted(texts)))).view(np.bool_)


def _strings(texts: Sequence[str]) -> pa.Array:
    data = [text.encode("utf-8") for text in texts]
    offsets = np.cumsum([0, *map(len, data)], dtype=np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(data))]
    return pa.Array.from_buffers(pa.string(), len(data), buffers)
