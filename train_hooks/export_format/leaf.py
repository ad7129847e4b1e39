"""Leaf v1: what one row commits to, and the Merkle root over the leaves of a step.

A leaf is an RFC 6962 leaf hash, SHA-256(0x00 || entry), of this entry (all integers little-endian):

    "kiseki-leaf-v1"  u16 len + address text  i64 sample_index (-1 = unknown)  u32 num_tokens  u8 item size
    32 bytes tokens commitment   32 bytes segments commitment   32 bytes tensors commitment

    row salt             HMAC-SHA-256(run secret, address text)
    salt(kind, i)        first 16 bytes of SHA-256(row salt || u8 kind || u32 i)
    tokens commitment    SHA-256(0x10 || u32 num_chunks || chunk_0 || chunk_1 …), kind 0x11
      chunk_i            SHA-256(0x11 || salt(0x11, i) || bytes of tokens [256·i, 256·(i+1)))
    segments commitment  SHA-256(0x12 || salt(0x12, 0) || u32 count || segments)
    tensors commitment   SHA-256(0x13 || salt(0x13, 0) || u32 count || tensors)

A chunk can be disclosed with its salt while the others stay hidden, and a guess at private text cannot be tested
without the salt. Inner nodes are SHA-256(0x01 || left || right) (RFC 6962 section 2.1).
"""

import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.records import Segment, TensorRecord

__all__ = ["CHUNK_TOKENS", "EMPTY_ROOT", "chunk_commitment", "leaf_hash", "merkle_root", "tensors_commitment"]

CHUNK_TOKENS = 256
EMPTY_ROOT = hashlib.sha256(b"").digest()
_TAG = b"kiseki-leaf-v1"
NO_CHUNKS: Mapping[int, bytes] = {}
Tokens: TypeAlias = npt.NDArray[np.unsignedinteger]


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _salt(row_salt: bytes, kind: int, index: int) -> bytes:
    return _sha256(row_salt + struct.pack("<BI", kind, index))[:16]


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return struct.pack("<I", len(encoded)) + encoded


def _chunk(row_salt: bytes, index: int, data: bytes) -> bytes:
    return _sha256(b"\x11" + _salt(row_salt, 0x11, index) + data)


def _tokens_commitment(row_salt: bytes, data: bytes, itemsize: int, known: Mapping[int, bytes]) -> bytes:
    size = CHUNK_TOKENS * itemsize
    chunks = [
        known[index] if index in known else _chunk(row_salt, index, data[start : start + size])
        for index, start in enumerate(range(0, len(data), size))
    ]
    return _sha256(b"\x10" + struct.pack("<I", len(chunks)) + b"".join(chunks))


def _segments_commitment(row_salt: bytes, segments: Sequence[Segment]) -> bytes:
    parts = [b"\x12", _salt(row_salt, 0x12, 0), struct.pack("<I", len(segments))]
    for segment in segments:
        parts.append(struct.pack("<IIq", segment.start, segment.length, segment.document_token_offset))
        parts.append(_text(segment.source) + _text(segment.document_id))
    return _sha256(b"".join(parts))


def _tensors_commitment(row_salt: bytes, tensors: Sequence[TensorRecord]) -> bytes:
    parts = [b"\x13", _salt(row_salt, 0x13, 0), struct.pack("<I", len(tensors))]
    for tensor in tensors:
        parts.append(_text(tensor.name) + _text(tensor.dtype) + _text(tensor.encoding))
        parts.append(struct.pack(f"<I{len(tensor.shape)}I", len(tensor.shape), *tensor.shape))
        parts.append(struct.pack("<I", len(tensor.data)) + tensor.data)
    return _sha256(b"".join(parts))


def leaf_hash(
    secret: bytes,
    address: str,
    sample_index: int | None,
    tokens: Tokens,
    segments: Sequence[Segment],
    tensors: Sequence[TensorRecord] | bytes,
    chunks: Mapping[int, bytes] = NO_CHUNKS,
) -> bytes:
    """The 32 bytes that stand for a row; `tokens` is u16 or u32 [num_tokens].

    `tensors` may be their commitment, for those who do not have them; `chunks` are the commitments of chunks whose tokens
    are not there any more.
    """
    encoded_address = address.encode("utf-8")
    row_salt = _row_salt(secret, address)
    entry = (
        _TAG
        + struct.pack("<H", len(encoded_address))
        + encoded_address
        + struct.pack("<qIB", -1 if sample_index is None else sample_index, len(tokens), tokens.dtype.itemsize)
        + _tokens_commitment(row_salt, _little_endian(tokens), tokens.dtype.itemsize, chunks)
        + _segments_commitment(row_salt, segments)
        + (tensors if isinstance(tensors, bytes) else _tensors_commitment(row_salt, tensors))
    )
    return _sha256(b"\x00" + entry)


def tensors_commitment(secret: bytes, address: str, tensors: Sequence[TensorRecord]) -> bytes:
    """What the leaf holds of a row's further tensors, for those who keep its tokens and segments alone."""
    return _tensors_commitment(_row_salt(secret, address), tensors)


def chunk_commitment(secret: bytes, address: str, tokens: Tokens, index: int) -> bytes:
    """What the leaf holds of tokens [256 * index, 256 * (index + 1)) of a row."""
    chunk = tokens[index * CHUNK_TOKENS : (index + 1) * CHUNK_TOKENS]
    return _chunk(_row_salt(secret, address), index, _little_endian(chunk))


def _little_endian(tokens: Tokens) -> bytes:
    return tokens.astype(tokens.dtype.newbyteorder("<"), copy=False).tobytes()


def _row_salt(secret: bytes, address: str) -> bytes:
    return hmac.digest(secret, address.encode("utf-8"), "sha256")


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 root hash of a list of leaf hashes, in O(n): a stack of perfect subtrees, joined from the right."""
    if not leaves:
        return EMPTY_ROOT
    stack: list[tuple[int, bytes]] = []
    for leaf in leaves:
        size, node = 1, leaf
        while stack and stack[-1][0] == size:
            node = _sha256(b"\x01" + stack.pop()[1] + node)
            size *= 2
        stack.append((size, node))
    root = stack.pop()[1]
    while stack:
        root = _sha256(b"\x01" + stack.pop()[1] + root)
    return root
