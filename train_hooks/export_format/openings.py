"""Opening one part of a row to somebody who has neither the export nor its secret.

A `PartOpening` holds what leaf v2 needs to be computed again: the part's own place, names, tokens and salts, and
hashes of all else. Nothing in it depends on another part's tokens or names, except through salted hashes whose salts
are not given. So a document's owner can check that the document was in a row of the run, and learns nothing of the
documents beside it but where its own part begins and ends, how many parts and tokens the row has, and its sample
index. Somebody who can guess what stands in a closed part cannot test the guess.
"""

from dataclasses import dataclass

import numpy as np

from train_hooks.export_format.errors import InputError
from train_hooks.export_format.leaf import (
    CHUNK_TOKENS,
    Tokens,
    chunk_hash,
    leaf_of_parts,
    merkle_path,
    part_hash,
    root_of_path,
)
from train_hooks.export_format.records import Row, Segment
from train_hooks.export_format.removal import removal_of, row_leaf

__all__ = ["PartOpening", "open_part"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PartOpening:
    """One opened part of a row.

    part: its number. segment: its place and names; None for a stretch that no segment covers, then start and length
    say where it is. chunks: for each chunk of the part its salt and tokens [up to 256], or the commitment of one that
    stays closed. path: the Merkle path from the part's hash to the parts root, its neighbour first.
    """

    address: str
    sample_index: int | None
    num_tokens: int
    token_size_bytes: int
    num_parts: int
    part: int
    start: int
    length: int
    segment: Segment | None
    part_salt: bytes
    chunks: tuple[tuple[bytes, Tokens] | bytes, ...]
    path: tuple[bytes, ...]
    tensors_commitment: bytes

    def leaf(self) -> bytes:
        """The leaf that this part is of. Equal to the row's leaf if and only if all that is opened was in the row.

        Raises InputError for an opening of other lengths than the format has: bytes must not move from a salt to what
        it salts.
        """
        self._check()
        chunks = [
            chunk if isinstance(chunk, bytes) else chunk_hash(chunk[0], _little_endian(chunk[1]))
            for chunk in self.chunks
        ]
        own = part_hash(self.part_salt, self.start, self.length, self.segment, chunks)
        root = root_of_path(own, self.part, self.num_parts, self.path)
        return leaf_of_parts(
            self.address, self.sample_index, self.num_tokens, self.token_size_bytes, self.num_parts, root,
            self.tensors_commitment,
        )  # fmt: skip

    def _check(self) -> None:
        sizes = [min(CHUNK_TOKENS, self.length - start) for start in range(0, self.length, CHUNK_TOKENS)]
        segment = (self.start, self.length) if self.segment is None else (self.segment.start, self.segment.length)
        if len(sizes) != len(self.chunks) or self.length < 1 or not 0 <= self.start <= self.num_tokens - self.length:
            raise InputError(
                f"expected a chunk for each {CHUNK_TOKENS} of {self.length} tokens inside a row of {self.num_tokens}, found "
                f"{len(self.chunks)} chunks from token {self.start} on"
            )
        if segment != (self.start, self.length):
            raise InputError(f"expected a segment of the part's own place, found tokens {segment}")
        if len(self.part_salt) != 16 or len(self.tensors_commitment) != 32 or self.token_size_bytes not in (2, 4):
            raise InputError("expected a salt of 16 bytes, a commitment of 32, and tokens of 2 or 4 bytes")
        for size, chunk in zip(sizes, self.chunks, strict=True):
            if isinstance(chunk, bytes):
                fits = len(chunk) == 32
            else:
                salt, tokens = chunk
                fits = len(salt) == 16 and tokens.shape == (size,) and tokens.dtype.itemsize == self.token_size_bytes
            if not fits:
                raise InputError(
                    f"expected chunks of {sizes} tokens of {self.token_size_bytes} bytes with salts of 16 bytes, or "
                    "commitments of 32"
                )


def open_part(secret: bytes, row: Row, part: int) -> PartOpening:
    """Open one part of a row of format 3. Chunks that lost tokens stay closed. Raises InputError for no such part."""
    if row.format_version < 3:
        raise InputError(
            f"{row.address} is of format {row.format_version}, whose leaves open all segments or none; format 3 is needed"
        )
    leaf, removal = row_leaf(secret, row), removal_of(row)
    if not 0 <= part < len(leaf.parts):
        raise InputError(f"{row.address}: expected a part from 0 to {len(leaf.parts) - 1}, found {part}")
    lost = {} if removal is None else removal.chunks
    of = leaf.parts[part]
    chunks: list[tuple[bytes, Tokens] | bytes] = [
        lost[number] if number in lost else (leaf.chunk_salt(number), row.tokens[start:end])
        for number, (start, end) in zip(of.chunks, of.chunk_ranges(), strict=True)
    ]
    return PartOpening(
        address=str(row.address),
        sample_index=row.sample_index,
        num_tokens=len(row.tokens),
        token_size_bytes=row.tokens.dtype.itemsize,
        num_parts=len(leaf.parts),
        part=part,
        start=of.start,
        length=of.end - of.start,
        segment=of.segment,
        part_salt=leaf.part_salt(part),
        chunks=tuple(chunks),
        path=tuple(merkle_path(leaf.part_hashes(lost), part)),
        tensors_commitment=leaf.tensors_commitment(row.tensors) if removal is None else removal.tensors,
    )


def _little_endian(tokens: Tokens) -> bytes:
    return np.asarray(tokens).astype(tokens.dtype.newbyteorder("<"), copy=False).tobytes()
