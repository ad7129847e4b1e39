"""Megatron's tokenized files: PREFIX.idx says where in PREFIX.bin each sequence stands, and which sequences are a document.

Layout of PREFIX.idx: `MMIDIDX` and two zero bytes, u64 version 1, u8 dtype, u64 number of sequences, u64 number of documents
and one, then i32 lengths and i64 byte offsets of the sequences, and the i64 numbers of the sequences that documents begin with.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.errors import InputError

__all__ = ["IndexedTokens", "open_indexed"]

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\x00\x00"
_DTYPES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedTokens:
    """lengths i32, pointers i64 (in bytes) by sequence; documents i64 [num_documents + 1]; tokens: all of them. All mapped."""

    name: str
    lengths: npt.NDArray[np.int32]
    pointers: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.integer]

    def read(self, sequence: int, offset: int, length: int) -> npt.NDArray[np.integer]:
        """`length` tokens of a sequence from `offset` on."""
        begin = int(self.pointers[sequence]) // self.tokens.itemsize + offset
        return self.tokens[begin : begin + length]

    def document(self, sequence: int) -> tuple[int, int]:
        """The document that a sequence belongs to, and how many of its tokens stand in earlier sequences of it."""
        ordinal = int(np.searchsorted(self.documents, sequence, side="right")) - 1
        return ordinal, int(self.lengths[int(self.documents[ordinal]) : sequence].sum())


def open_indexed(prefix: Path) -> IndexedTokens:
    """PREFIX.idx and PREFIX.bin. Raises InputError where they are none, or do not fit one another."""
    index, data = prefix.with_name(prefix.name + ".idx"), prefix.with_name(prefix.name + ".bin")
    try:
        raw = np.memmap(index, np.uint8, mode="r") if index.stat().st_size else np.zeros(0, np.uint8)
        size = data.stat().st_size
    except OSError as error:
        raise InputError(
            f"expected {index.name} and {data.name}: {error}; give their directory with --data-dir"
        ) from error
    begin = raw[: len(_MAGIC)].tobytes()
    if len(raw) < _HEADER.size or begin != _MAGIC:
        raise InputError(f"{index}: expected an index of Megatron's, beginning with {_MAGIC!r}, found {begin!r}")
    _, version, code, num_sequences, num_documents = _HEADER.unpack(raw[: _HEADER.size].tobytes())
    if version != 1 or code not in _DTYPES or len(raw) != _HEADER.size + 12 * num_sequences + 8 * num_documents:
        raise InputError(f"{index}: expected version 1, whole; found version {version}, dtype {code}, {len(raw)} bytes")
    lengths = np.frombuffer(raw, "<i4", num_sequences, _HEADER.size)
    pointers = np.frombuffer(raw, "<i8", num_sequences, _HEADER.size + 4 * num_sequences)
    documents = np.frombuffer(raw, "<i8", num_documents, _HEADER.size + 12 * num_sequences)
    itemsize = np.dtype(_DTYPES[code]).itemsize
    if num_sequences and size < int(pointers[-1]) + int(lengths[-1]) * itemsize:
        raise InputError(f"{data}: expected {int(pointers[-1]) + int(lengths[-1]) * itemsize} bytes, found {size}")
    tokens = np.memmap(data, _DTYPES[code], mode="r") if size else np.zeros(0, _DTYPES[code])
    return IndexedTokens(name=prefix.name, lengths=lengths, pointers=pointers, documents=documents, tokens=tokens)
