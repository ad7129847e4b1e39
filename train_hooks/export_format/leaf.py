"""Leaves: what one row commits to, and the Merkle root over the leaves of a step.

A leaf is an RFC 6962 leaf hash, SHA-256(0x00 || entry). `docs/export_format.md` gives the bytes of both versions.

- **Leaf v2** (format 3) divides a row into *parts*, one for each segment and one for each stretch that no segment
  covers, and each part into chunks of 256 tokens from its own start. Parts and chunks have a salt each. So one
  document's part can be opened, and nothing of its neighbours can be computed from what is given.
- **Leaf v1** (formats 1 and 2) has chunks of 256 tokens from the start of the row, and one commitment to all segments.

Salts derive from the row salt, HMAC-SHA-256(run secret, address). The run secret is never published; the salt of a
row may be, for a row that lost no tokens. Whoever has a salt can test guesses at what it protects. Inner nodes are
SHA-256(0x01 || left || right) (RFC 6962 section 2.1).
"""

import functools
import hashlib
import hmac
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import Segment, TensorRecord

__all__ = [
    "CHUNK_TOKENS",
    "EMPTY_ROOT",
    "RowLeaf",
    "chunk_hash",
    "chunk_ranges",
    "leaf_of_parts",
    "merkle_path",
    "merkle_root",
    "part_hash",
    "root_of_path",
    "row_salt",
    "tensors_commitment",
]

CHUNK_TOKENS = 256
EMPTY_ROOT = hashlib.sha256(b"").digest()
NO_CHUNKS: Mapping[int, bytes] = {}
Tokens: TypeAlias = npt.NDArray[np.unsignedinteger]
Range: TypeAlias = tuple[int, int]
_PART, _NO_NAMES = b"\x00kiseki-part-v2", b"\x00"
_PLACE, _NAMES = struct.Struct("<II"), struct.Struct("<BqI")


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return struct.pack("<I", len(encoded)) + encoded


def row_salt(secret: bytes, address: str) -> bytes:
    """The 32 bytes that all salts of a row derive from."""
    return hmac.digest(secret, address.encode("utf-8"), "sha256")


class Part(NamedTuple):
    """Tokens [start, end) of a row, in one segment or in none, and the numbers of their chunks."""

    start: int
    end: int
    segment: Segment | None
    chunks: range

    def chunk_ranges(self) -> Iterator[Range]:
        """Tokens [start, end) of each chunk."""
        for start in range(self.start, self.end, CHUNK_TOKENS):
            yield start, min(start + CHUNK_TOKENS, self.end)


def parts_of(num_tokens: int, segments: Sequence[Segment]) -> list[Part]:
    """The parts of a row, in order; segments do not overlap and follow one another."""
    found: list[Part] = []
    position = first = 0
    for segment in segments:
        if position < segment.start:
            found.append(Part(position, segment.start, None, _chunks_of(first, segment.start - position)))
            first = found[-1].chunks.stop
        position = segment.start + segment.length
        found.append(Part(segment.start, position, segment, _chunks_of(first, segment.length)))
        first = found[-1].chunks.stop
    if position < num_tokens:
        found.append(Part(position, num_tokens, None, _chunks_of(first, num_tokens - position)))
    return found


def _chunks_of(first: int, num_tokens: int) -> range:
    return range(first, first - (-num_tokens // CHUNK_TOKENS))


def chunk_ranges(num_tokens: int, segments: Sequence[Segment], format_version: int) -> list[Range]:
    """Tokens [start, end) of each chunk of a row, by its number, as its leaf divides it."""
    if format_version < 3:
        return [(at, min(at + CHUNK_TOKENS, num_tokens)) for at in range(0, num_tokens, CHUNK_TOKENS)]
    return [each for part in parts_of(num_tokens, segments) for each in part.chunk_ranges()]


def chunk_hash(salt: bytes, data: bytes) -> bytes:
    """The commitment to the bytes of one chunk's tokens."""
    return _sha256(b"\x11" + salt + data)


def part_hash(salt: bytes, start: int, length: int, segment: Segment | None, chunks: Sequence[bytes]) -> bytes:
    """The leaf hash of one part of leaf v2, from the commitments of its chunks."""
    names = _NO_NAMES if segment is None else _names(segment)
    return _sha256(_PART + salt + _PLACE.pack(start, length) + names + b"".join(chunks))


def _names(segment: Segment) -> bytes:
    source, document_id = segment.source.encode("utf-8"), segment.document_id.encode("utf-8")
    head = _NAMES.pack(1, segment.document_token_offset, len(source))
    return head + source + len(document_id).to_bytes(4, "little") + document_id


def tensors_commitment(salt: bytes, tensors: Sequence[TensorRecord], format_version: int = 3) -> bytes:
    """What a leaf holds of the tensors of a row, from the row's salt: nothing else of the row is needed."""
    new = format_version >= 3
    own = hashlib.shake_256(salt).digest(16) if new else _old_salt(salt, 0x13, 0)
    parts = [b"\x13", own, struct.pack("<I", len(tensors))]
    for tensor in tensors:
        parts.append(_text(tensor.name) + _text(tensor.dtype) + _text(tensor.encoding))
        if new:
            parts.append(b"\x01" if tensor.whole else b"\x00")
        parts.append(struct.pack(f"<I{len(tensor.shape)}I", len(tensor.shape), *tensor.shape))
        parts.append(struct.pack("<I", len(tensor.data)) + tensor.data)
    return _sha256(b"".join(parts))


def _old_salt(salt: bytes, kind: int, index: int) -> bytes:
    return _sha256(salt + struct.pack("<BI", kind, index))[:16]


def leaf_of_parts(
    address: str,
    sample_index: int | None,
    num_tokens: int,
    itemsize: int,
    num_parts: int,
    parts_root: bytes,
    tensors: bytes,
) -> bytes:
    """Leaf v2 from the root over its parts and the commitment to its tensors."""
    content = struct.pack("<I", num_parts) + parts_root + tensors
    return _leaf(b"kiseki-leaf-v2", address, sample_index, num_tokens, itemsize, content)


def _leaf(tag: bytes, address: str, sample_index: int | None, num_tokens: int, itemsize: int, content: bytes) -> bytes:
    encoded = address.encode("utf-8")
    place = struct.pack("<qIB", -1 if sample_index is None else sample_index, num_tokens, itemsize)
    return _sha256(b"\x00" + tag + struct.pack("<H", len(encoded)) + encoded + place + content)


class RowLeaf:
    """The leaf of one row, and the commitments that it is made of. Made from the row's salt; costs nothing until asked.

    format_version: that of the attempt, which decides between leaf v1 and v2.
    """

    def __init__(
        self, salt: bytes, address: str, tokens: Tokens, segments: Sequence[Segment], format_version: int = 3
    ) -> None:
        self.salt, self.address, self.segments, self._version = salt, address, segments, format_version
        self._data = tokens.astype(tokens.dtype.newbyteorder("<"), copy=False).tobytes()
        self._itemsize, self.num_tokens = tokens.dtype.itemsize, len(tokens)

    @functools.cached_property
    def parts(self) -> list[Part]:
        """The parts of leaf v2, in the order of their tokens."""
        return parts_of(self.num_tokens, self.segments)

    @functools.cached_property
    def _salts(self) -> bytes:
        return hashlib.shake_256(self.salt).digest(16 * (1 + len(self.parts) + self.parts[-1].chunks.stop))

    def hash(
        self,
        sample_index: int | None,
        tensors: Sequence[TensorRecord] | bytes,
        chunks: Mapping[int, bytes] = NO_CHUNKS,
    ) -> bytes:
        """The 32 bytes that stand for the row.

        `tensors` may be their commitment, for those who do not have them; `chunks` are the commitments of chunks whose
        tokens are not there any more.
        """
        commitment = tensors if isinstance(tensors, bytes) else self.tensors_commitment(tensors)
        known = (self.address, sample_index, self.num_tokens, self._itemsize)
        if self._version >= 3:
            parts = self.part_hashes(chunks)
            return leaf_of_parts(*known, len(parts), merkle_root(parts), commitment)
        return _leaf(b"kiseki-leaf-v1", *known, self._old_tokens(chunks) + self._old_segments() + commitment)

    def tensors_commitment(self, tensors: Sequence[TensorRecord]) -> bytes:
        """What the leaf holds of the row's further tensors."""
        return tensors_commitment(self.salt, tensors, self._version)

    def chunk_commitment(self, index: int) -> bytes:
        """What the leaf holds of the tokens of one chunk."""
        start, end = chunk_ranges(self.num_tokens, self.segments, self._version)[index]
        return self._chunk(index, start, end)

    def chunk_salt(self, index: int) -> bytes:
        """The 16 bytes that open one chunk."""
        return self._salt(1 + len(self.parts) + index) if self._version >= 3 else _old_salt(self.salt, 0x11, index)

    def part_salt(self, index: int) -> bytes:
        """The 16 bytes that open one part's place and names. Leaf v2 alone has parts."""
        return self._salt(1 + index)

    def part_hashes(self, chunks: Mapping[int, bytes] = NO_CHUNKS) -> list[bytes]:
        """The leaf hash of each part."""
        if not chunks:
            return _whole_part_hashes(self.salt, self._data, self._itemsize, self.num_tokens, self.segments)
        return [self._part(index, part, chunks) for index, part in enumerate(self.parts)]

    def _old_tokens(self, chunks: Mapping[int, bytes]) -> bytes:
        found = [
            chunks[index] if index in chunks else self._chunk(index, start, end)
            for index, (start, end) in enumerate(chunk_ranges(self.num_tokens, (), 1))
        ]
        return _sha256(b"\x10" + struct.pack("<I", len(found)) + b"".join(found))

    def _part(self, index: int, part: Part, chunks: Mapping[int, bytes]) -> bytes:
        found = [
            chunks[number] if number in chunks else self._chunk(number, start, end)
            for number, (start, end) in zip(part.chunks, part.chunk_ranges(), strict=True)
        ]
        return part_hash(self._salt(1 + index), part.start, part.end - part.start, part.segment, found)

    def _chunk(self, index: int, start: int, end: int) -> bytes:
        return chunk_hash(self.chunk_salt(index), self._data[start * self._itemsize : end * self._itemsize])

    def _salt(self, number: int) -> bytes:
        return self._salts[16 * number : 16 * number + 16]

    def _old_segments(self) -> bytes:
        parts = [b"\x12", _old_salt(self.salt, 0x12, 0), struct.pack("<I", len(self.segments))]
        for segment in self.segments:
            parts.append(struct.pack("<IIq", segment.start, segment.length, segment.document_token_offset))
            parts.append(_text(segment.source) + _text(segment.document_id))
        return _sha256(b"".join(parts))


def _whole_part_hashes(
    salt: bytes, data: bytes, itemsize: int, num_tokens: int, segments: Sequence[Segment]
) -> list[bytes]:
    """As `RowLeaf._part` of each part, with all tokens there. The writer thread does it for each row: written for speed."""
    places, position, num_chunks = [], 0, 0
    for segment in (*segments, None):
        start = num_tokens if segment is None else segment.start
        if position < start:
            places.append((position, start, _NO_NAMES))
            num_chunks -= (position - start) // CHUNK_TOKENS
        if segment is not None:
            position = start + segment.length
            places.append((start, position, _names(segment)))
            num_chunks -= -segment.length // CHUNK_TOKENS
    sha256, salts = hashlib.sha256, hashlib.shake_256(salt).digest(16 * (1 + len(places) + num_chunks))
    own, next_chunk, found = 16, 16 * (1 + len(places)), []
    for start, end, names in places:
        commitments = b""
        for at in range(start, end, CHUNK_TOKENS):
            chunk = data[at * itemsize : min(at + CHUNK_TOKENS, end) * itemsize]
            commitments += sha256(b"\x11" + salts[next_chunk : next_chunk + 16] + chunk).digest()
            next_chunk += 16
        entry = _PART + salts[own : own + 16] + _PLACE.pack(start, end - start) + names + commitments
        found.append(sha256(entry).digest())
        own += 16
    return found


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """RFC 6962 root hash of a list of leaf hashes, level by level."""
    if not leaves:
        return EMPTY_ROOT
    sha256, level = hashlib.sha256, leaves
    while len(level) > 1:  # a node without a neighbour on its right goes up as it is
        rest = level[-1:] if len(level) % 2 else ()
        level = [sha256(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        level += rest
    return level[0]


def merkle_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of RFC 6962 section 2.1.1 from a leaf to the root, the leaf's own neighbour first."""
    if len(leaves) <= 1:
        return []
    half = 1 << (len(leaves) - 1).bit_length() - 1
    if index < half:
        return [*merkle_path(leaves[:half], index), merkle_root(leaves[half:])]
    return [*merkle_path(leaves[half:], index - half), merkle_root(leaves[:half])]


def root_of_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that a leaf and its audit path give in a tree of `size` leaves (RFC 9162 section 2.1.3.2).

    Raises InputError for a path that no leaf of such a tree has.
    """
    if not 0 <= index < size or any(len(node) != 32 for node in path):
        raise InputError(f"expected a leaf below {size} and hashes of 32 bytes, found leaf {index}")
    root, last, rest = leaf, size - 1, list(path)
    while last > 0:
        if index % 2 or index != last:
            if not rest:
                raise InputError(f"expected more hashes than {len(path)} in the path of a tree of {size} leaves")
            other = rest.pop(0)
            root = _sha256(b"\x01" + (other + root if index % 2 else root + other))
        index, last = index // 2, last // 2
    if rest:
        raise InputError(f"expected fewer hashes than {len(path)} in the path of a tree of {size} leaves")
    return root
