"""Tokens that were taken out of a row for good, and what keeps the row provable without them.

1. Taken out are token ranges [start, end) of a row: they read as zeros. With them go all further tensors of the row
   (labels repeat tokens), in whose place is one record, encoding `removed`, that says what is gone. Slot 0 of the
   micro-batch loses its tensors too, though no tokens, where it holds tensors of the whole micro-batch.
2. The record keeps the commitments of the row's leaf that cannot be computed any more: of each chunk that a range
   touches, and of the tensors. So the leaf, the step's root and the chain hold, and all other chunks stay provable.
   It also keeps how each tensor was known, which the record commitment covers.
3. Address, segments, sample index, status, evidence and losses stay: they say what was there, not what it said.
4. A commitment is a salted hash. Whoever has the run's secret can still try guesses against it; without it nobody can.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.leaf import RowLeaf, chunk_ranges, row_salt
from train_hooks.export_format.records import Evidence, Row, TensorRecord

__all__ = ["Removal", "leaf_of_row", "removal_of", "row_leaf", "tensor_evidence_of", "without_tokens"]

NAME, ENCODING = "removed", "removed"
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """What a row has lost: its token ranges, ascending and apart; the commitments of touched chunks, and of its
    tensors.

    evidence: the own evidence of each tensor that was there; None in formats 1 and 2.
    """

    ranges: Ranges
    chunks: Mapping[int, bytes]
    tensors: bytes
    evidence: tuple[Evidence | None, ...] | None

    def encode(self) -> bytes:
        """As the record's data: JSON."""
        chunks = {str(index): digest.hex() for index, digest in sorted(self.chunks.items())}
        document: dict[str, object] = {"ranges": self.ranges, "chunks": chunks, "tensors": self.tensors.hex()}
        if self.evidence is not None:
            document["evidence"] = self.evidence
        return json.dumps(document).encode()


def removal_of(row: Row) -> Removal | None:
    """What was taken out of a row; None for nothing. Raises DamageError where the record is none, or zeros are missing."""
    if not any(tensor.encoding == ENCODING for tensor in row.tensors):
        return None
    try:
        (record,) = row.tensors
        found = json.loads(record.data)
        ranges = tuple((int(start), int(end)) for start, end in found["ranges"])
        chunks = {int(index): bytes.fromhex(digest) for index, digest in found["chunks"].items()}
        evidence = None
        if row.format_version >= 3:
            evidence = tuple(None if word is None else Evidence(word) for word in found["evidence"])
        removal = Removal(ranges=ranges, chunks=chunks, tensors=bytes.fromhex(found["tensors"]), evidence=evidence)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamageError(f"row {row.address}: its record of removed tokens cannot be read: {error}") from error
    if (
        merged_ranges(ranges) != ranges
        or set(chunks) != _touched(row, ranges)
        or any(len(digest) != 32 for digest in (*chunks.values(), removal.tensors))
        or (ranges and not 0 <= ranges[0][0] <= ranges[-1][1] <= len(row.tokens))
        or any(row.tokens[start:end].any() for start, end in ranges)
    ):
        raise DamageError(f"row {row.address}: its record of removed tokens does not fit its tokens")
    return removal


def without_tokens(secret: bytes, row: Row, ranges: Iterable[tuple[int, int]]) -> Row:
    """The row without the tokens of `ranges`, on top of what it has lost before; itself where it has lost them all.

    Without ranges it loses its further tensors alone.
    """
    before = removal_of(row)
    all_ranges = merged_ranges([*ranges, *(before.ranges if before else ())])
    if before is not None and all_ranges == before.ranges:
        return row
    leaf = row_leaf(secret, row)
    known = before.chunks if before else {}
    chunks = {index: known.get(index) or leaf.chunk_commitment(index) for index in _touched(row, all_ranges)}
    tokens = np.array(row.tokens)
    for start, end in all_ranges:
        tokens[start:end] = 0
    data = Removal(
        ranges=all_ranges,
        chunks=chunks,
        tensors=before.tensors if before else leaf.tensors_commitment(row.tensors),
        evidence=tensor_evidence_of(row) if row.format_version >= 3 else None,
    ).encode()
    record = TensorRecord(name=NAME, dtype="|u1", shape=(len(data),), encoding=ENCODING, data=data)
    return dataclasses.replace(row, tokens=tokens, tensors=(record,))


def tensor_evidence_of(row: Row) -> tuple[Evidence | None, ...]:
    """The own evidence of each tensor that the row has, or had before a takedown."""
    removal = removal_of(row)
    if removal is not None:
        return removal.evidence or ()
    return tuple(tensor.evidence for tensor in row.tensors)


def row_leaf(secret: bytes, row: Row) -> RowLeaf:
    """The leaf of a row as it is, of the version that its attempt has."""
    address = str(row.address)
    return RowLeaf(row_salt(secret, address), address, row.tokens, row.segments, row.format_version)


def leaf_of_row(secret: bytes, row: Row) -> bytes:
    """The hash of a row's leaf as the row is, or was before tokens were taken out. Raises DamageError."""
    removal = removal_of(row)
    if removal is None:
        return row_leaf(secret, row).hash(row.sample_index, row.tensors)
    return row_leaf(secret, row).hash(row.sample_index, removal.tensors, removal.chunks)


def merged_ranges(ranges: Iterable[Sequence[int]]) -> Ranges:
    """Ranges [start, end), ascending, those that meet merged_ranges, empty ones left out."""
    found: list[tuple[int, int]] = []
    for start, end in sorted((start, end) for start, end in ranges if start < end):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return tuple(found)


def _touched(row: Row, ranges: Ranges) -> set[int]:
    """Numbers of the chunks of a row that a range touches."""
    chunks = chunk_ranges(len(row.tokens), row.segments, row.format_version)
    return {
        index for index, (start, end) in enumerate(chunks) if any(low < end and start < high for low, high in ranges)
    }
