"""Scalars of TensorBoard event files, read without tensorboard or protobuf.

An event file is a TFRecord file: records of u64 length, u32 masked CRC-32C of the length, the data, u32 masked CRC-32C of the
data, little-endian. Each record is a protocol buffer `Event`; the fields that matter, with their numbers:

    Event          1 wall_time (double)   2 step (int64)   5 summary
    Summary        1 value, repeated
    Summary.Value  1 tag   2 simple_value (float)   8 tensor
    TensorProto    1 dtype   2 tensor_shape   4 tensor_content   5 float_val   6 double_val   7 int_val   10 int64_val
                   13 half_val, the bits of float16 or bfloat16

A scalar is a `simple_value`, as PyTorch and tensorboardX write it, or a tensor of one number and no dimension, as
TensorFlow 2 does. Histograms, images and texts are passed over.

Nothing is believed that does not match its CRC. A record that ends behind the file is what a writer leaves that is still
writing, or was killed: it is a note, not a problem.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from indexer.metrics.crc32c import masked_crc32c
from indexer.metrics.rows import MetricRows

__all__ = ["looks_like_events", "read_events"]

_HEADER = struct.Struct("<QI")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_CONTENT_DTYPES = {
    1: "<f4",
    2: "<f8",
    3: "<i4",
    4: "u1",
    5: "<i2",
    6: "i1",
    9: "<i8",
    17: "<u2",
    19: "<f2",
    22: "<u4",
    23: "<u8",
}
_HALF, _BFLOAT16 = 19, 14
_VALUE_FIELDS = {5: ("<f", 4), 6: ("<d", 8)}


def looks_like_events(path: Path) -> bool:
    """Whether a file begins as an event file does."""
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    return len(header) == _HEADER.size and masked_crc32c(header[:8]) == _HEADER.unpack(header)[1]


def read_events(path: Path) -> MetricRows:
    """The scalars of a file. Raises OSError."""
    rows = MetricRows()
    with path.open("rb") as file:
        for place, data in _records(file, path.name, rows):
            try:
                _read_event(data, rows)
            except (ValueError, struct.error, IndexError, UnicodeDecodeError) as error:
                rows.problem(f"{path.name} byte {place:,}: expected an event, {error}")
    return rows


def _records(file: BinaryIO, name: str, rows: MetricRows) -> Iterator[tuple[int, bytes]]:
    size, place = os.fstat(file.fileno()).st_size, 0
    while header := file.read(_HEADER.size):
        if len(header) < _HEADER.size:
            rows.notes.append(f"the file ends in the middle of a record, at byte {place:,}")
            return
        length, expected = _HEADER.unpack(header)
        if masked_crc32c(header[:8]) != expected:
            rows.problem(f"{name} byte {place:,}: the length of a record does not match its CRC; the rest is not read")
            return
        if place + _HEADER.size + length + 4 > size:
            rows.notes.append(f"the file ends in the middle of a record, at byte {place:,}")
            return
        data, crc = file.read(length), file.read(4)
        if masked_crc32c(data) != int.from_bytes(crc, "little"):
            rows.problem(f"{name} byte {place:,}: a record does not match its CRC; it is left out")
        else:
            yield place, data
        place += _HEADER.size + length + 4


def _read_event(data: bytes, rows: MetricRows) -> None:
    wall_time: float | None = None
    step, summaries = 0, []
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            wall_time = struct.unpack("<d", value)[0]
        elif number == 2 and isinstance(value, int):
            step = value - (1 << 64) if value >= 1 << 63 else value
        elif number == 5 and isinstance(value, bytes):
            summaries.append(value)
    for summary in summaries:
        for number, value in _fields(summary):
            if number == 1 and isinstance(value, bytes):
                tag, scalar = _read_value(value)
                if scalar is not None:
                    rows.add(step, wall_time, tag, scalar)


def _read_value(data: bytes) -> tuple[str, float | None]:
    tag, scalar = "", None
    for number, value in _fields(data):
        if isinstance(value, bytes):
            if number == 1:
                tag = value.decode("utf-8")
            elif number == 2:
                scalar = struct.unpack("<f", value)[0]
            elif number == 8:
                scalar = _scalar_of_tensor(value)
    return tag, scalar


def _scalar_of_tensor(data: bytes) -> float | None:
    """The number of a tensor without dimensions; None for any other tensor."""
    dtype, found = 0, []
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            dtype = value
        elif number == 2 and isinstance(value, bytes):
            if any(field == 2 for field, _ in _fields(value)):
                return None
        elif number == 4 and isinstance(value, bytes):
            found += _content(dtype, value)
        elif number in _VALUE_FIELDS and isinstance(value, bytes):
            form, size = _VALUE_FIELDS[number]
            found += [struct.unpack(form, value[i : i + size])[0] for i in range(0, len(value), size)]
        elif number in (7, 10, 13):
            found += [_signed(item, dtype) for item in (_varints(value) if isinstance(value, bytes) else [value])]
    return float(found[0]) if len(found) == 1 else None


def _content(dtype: int, data: bytes) -> list[float]:
    if dtype == _BFLOAT16:
        return [float(item) for item in (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)]
    if dtype not in _CONTENT_DTYPES:
        return []
    return [float(item) for item in np.frombuffer(data, _CONTENT_DTYPES[dtype])]


def _signed(value: int, dtype: int) -> float:
    if dtype in (_HALF, _BFLOAT16):
        return _content(dtype, struct.pack("<H", value))[0]
    return float(value - (1 << 64) if value >= 1 << 63 else value)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of a message: varints as int, everything else as bytes. Raises ValueError where it is none."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == _BYTES:
            length, place = _varint(data, place)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"found wire type {kind}")
        if number == 0 or place + length > len(data):
            raise ValueError("found a field that ends behind its message")
        yield number, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ValueError("found a number that does not end")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("found a number of more than ten bytes")


def _varints(data: bytes) -> list[int]:
    found, place = [], 0
    while place < len(data):
        value, place = _varint(data, place)
        found.append(value)
    return found
