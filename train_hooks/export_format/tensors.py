"""What can be derived from tokens and segments is not stored; what cannot is stored whole.

Each further tensor of the forward call (labels, loss mask, positions, document ids …) is kept for every row as a name,
a dtype, a shape and the first of these encodings that gives it back bit for bit:

    tokens           equal to the tokens                                               no data
    next             x[i] = tokens[i+1], the last one from data                        one element
    next-in-segment  as `next`, but a segment's last position holds a mask value       two elements: last, mask
    constant         every element the same bits                                       one element
    arange           x[i] = i                                                          no data
    arange-segment   x[i] = i - start of the segment that holds i                      no data
    segment-index    x[i] = number of the segment that holds i, from 0                 no data
    zlib             the elements, little-endian, deflated                             everything else

The encoder decodes what it chose and compares bits, so an encoding can be wrong only by being longer than it need be.

A dtype is numpy's, or the name of a torch dtype that numpy lacks (`bfloat16`, `complex32`, `float8_…`, `float4_…`):
its elements are bits.
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.records import Evidence, Segment, TensorRecord

__all__ = ["as_current_tensor", "bits_dtype", "decode_tensor", "encode_tensor", "token_tensor"]

_OLD_WHOLE = "microbatch/"

Array = npt.NDArray[np.generic]
Tokens = npt.NDArray[np.unsignedinteger]


def bits_dtype(name: str) -> np.dtype[np.generic] | None:
    """The integers that hold the bits of a torch dtype which numpy lacks; None for any other name."""
    if name.startswith(("float8_", "float4_")):
        return np.dtype("|u1")
    found = {"bfloat16": "<i2", "complex32": "<i4"}.get(name)
    return None if found is None else np.dtype(found)


def as_current_tensor(record: TensorRecord, format_version: int) -> TensorRecord:
    """A record of any format as the current one describes it: older ones put `whole` and torch dtypes into the name."""
    if format_version >= 3:
        return record
    name = record.name.removeprefix(_OLD_WHOLE)
    stem, _, suffix = name.rpartition(":")
    whole = record.name.startswith(_OLD_WHOLE)
    if stem and bits_dtype(suffix) is not None:
        return replace(record, name=stem, dtype=suffix, whole=whole)
    return replace(record, name=name, whole=whole)


def encode_tensor(
    name: str,
    value: Array,
    tokens: Tokens,
    segments: Sequence[Segment],
    *,
    dtype: str | None = None,
    whole: bool = False,
    evidence: Evidence | None = None,
) -> TensorRecord:
    """The shortest record that gives `value` (one row of a tensor, any shape and dtype) back.

    dtype: the torch dtype whose bits `value` holds, where numpy lacks it. whole, evidence: see `TensorRecord`.
    """
    exact = np.asarray(value, value.dtype.newbyteorder("<"), order="C")
    raw = exact.tobytes()
    known = {"name": name, "shape": exact.shape, "whole": whole, "evidence": evidence}
    for encoding, data in _candidates(exact, raw, tokens, segments, bits=dtype is not None):
        record = TensorRecord(**known, dtype=dtype or exact.dtype.str, encoding=encoding, data=data)  # type: ignore[arg-type]
        if encoding == "zlib" or decode_tensor(record, tokens, segments).tobytes() == raw:
            return record
    raise AssertionError("zlib holds everything")


def token_tensor(name: str, dtype: np.dtype[np.generic], num_tokens: int) -> TensorRecord:
    """The record of the token tensor itself: what it was called, and its dtype."""
    exact = dtype.newbyteorder("<")
    return TensorRecord(name=name, dtype=exact.str, shape=(num_tokens,), encoding="tokens", data=b"")


def _candidates(
    value: Array, raw: bytes, tokens: Tokens, segments: Sequence[Segment], *, bits: bool
) -> Iterator[tuple[str, bytes]]:
    size = value.dtype.itemsize
    if size and len(raw) >= size and raw == raw[:size] * (len(raw) // size):
        yield "constant", raw[:size]
    if value.shape == tokens.shape and value.dtype.kind in "iu" and len(tokens) and not bits:
        last = raw[-size:]
        first, second, after = value[0].item(), value[min(1, len(value) - 1)].item(), tokens[:2].tolist()
        ends = [segment.start + segment.length - 1 for segment in segments[:-1]]
        if first == after[0]:
            yield "tokens", b""
        if len(tokens) == 1 or first == after[1]:
            yield "next", last
        if ends and (ends[0] == 0 or first == after[1]):
            yield "next-in-segment", last + raw[ends[0] * size : (ends[0] + 1) * size]
        if first == 0 and second == min(1, len(value) - 1):
            yield "arange", b""
        if first == 0:
            yield "arange-segment", b""
            yield "segment-index", b""
    yield "zlib", zlib.compress(raw, 1)


def decode_tensor(record: TensorRecord, tokens: Tokens, segments: Sequence[Segment]) -> Array:
    """The tensor that `record` stands for. Raises DamageError where it cannot be one."""
    try:
        return _decode(record, bits_dtype(record.dtype) or np.dtype(record.dtype), tokens, segments)
    except (zlib.error, ValueError, IndexError, TypeError, OverflowError) as error:
        raise DamageError(
            f"tensor {record.name!r}: {len(record.data)} stored bytes are no {record.dtype} {record.shape} as "
            f"{record.encoding!r}: {error}"
        ) from error


def _decode(record: TensorRecord, dtype: np.dtype[np.generic], tokens: Tokens, segments: Sequence[Segment]) -> Array:
    match record.encoding:
        case "zlib":
            return np.frombuffer(zlib.decompress(record.data), dtype).reshape(record.shape)
        case "constant":
            return np.broadcast_to(np.frombuffer(record.data, dtype, 1)[0], record.shape)
        case "tokens":
            return tokens.astype(dtype)
        case "next" | "next-in-segment":
            return _decode_next(record, dtype, tokens, segments)
        case "arange":
            return np.arange(len(tokens)).astype(dtype)
        case "arange-segment":
            return _per_segment(segments, len(tokens), dtype, positions=True)
        case "segment-index":
            return _per_segment(segments, len(tokens), dtype, positions=False)
        case other:
            raise DamageError(f"tensor {record.name!r}: unknown encoding {other!r}; a newer kiseki may read it")


def _decode_next(
    record: TensorRecord, dtype: np.dtype[np.generic], tokens: Tokens, segments: Sequence[Segment]
) -> Array:
    stored = np.frombuffer(record.data, dtype)
    out = np.empty(len(tokens), dtype)
    out[:-1] = tokens[1:].astype(dtype)
    if record.encoding == "next-in-segment":
        for segment in segments[:-1]:
            out[segment.start + segment.length - 1] = stored[1]
    out[-1] = stored[0]
    return out


def _per_segment(segments: Sequence[Segment], length: int, dtype: np.dtype[np.generic], *, positions: bool) -> Array:
    out = np.zeros(length, np.int64)
    for index, segment in enumerate(segments):
        end = segment.start + segment.length
        out[segment.start : end] = np.arange(segment.length) if positions else index
    return out.astype(dtype)
