"""Building the span index of one shard.

Rules:

1. Tokens go to the file as they come; the sort reads them back from there. At the peak the process holds 12 bytes a
   token of u16 and 24 of u32 (big-endian copy, suffix array of the byte view, mapped tokens).
2. The byte view is big-endian, because only then is byte order numeric order. Suffixes that begin inside a token are
   dropped after the sort.
3. The file is synced before it is returned, and its header is written last. Publishing it is the caller's task; what an
   earlier build left behind under its name is overwritten.
4. A shard has at least one sequence. A sequence may be empty: it then takes one position, its separator.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydivsufsort import divsufsort
from threadpoolctl import threadpool_limits

from indexer.durable import sync
from indexer.spans.arrays import (
    PAGE,
    RANGE,
    SPANS_FILE,
    SUPERBLOCK,
    Section,
    SpanArrays,
    SpanIndexError,
    file_layout,
    file_size,
    header_page,
    open_span_arrays,
    token_dtype,
)
from indexer.spans.kernels.packing import fill_side_arrays, keep_aligned

__all__ = ["build_span_arrays", "max_tokens"]

Sequences = Iterable[NDArray[Any]] | NDArray[Any]
BATCH_TOKENS = 1 << 20


def max_tokens(dtype: DTypeLike) -> int:
    """Most positions, separators included, that a shard of that token dtype can hold (32-bit ranks over bytes)."""
    return int((2**31 - 1) // token_dtype(dtype).itemsize)


def build_span_arrays(sequences: Sequences, dtype: DTypeLike, directory: Path) -> SpanArrays:
    """Index sequences, in their order, in an existing directory, and open the result.

    `sequences` is an integer array [s, length], or yields integer arrays [length] of differing lengths; `dtype` is
    uint16 or uint32. Token ids are 0 … max(dtype) - 1: the largest value is the separator.

    Raises SpanIndexError for no sequences, for a sequence of another shape or dtype, for token ids out of range, and for
    more tokens than `max_tokens(dtype)`.
    """
    kind = token_dtype(dtype)
    path = directory / SPANS_FILE
    with path.open("w+b") as file:
        file.seek(PAGE)
        starts = write_tokens(file, sequences, kind)
        num_tokens, num_sequences = int(starts[-1]), len(starts) - 1
        sections = file_layout(kind, num_tokens, num_sequences)
        file.truncate(file_size(sections))
        write_section(file, sections["sequence_starts"], starts)
        write_sorted(file, path, sections)
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        file.write(header_page(kind, num_tokens, num_sequences))
        file.flush()
        os.fsync(file.fileno())
    sync(directory)
    return open_span_arrays(directory)


def write_tokens(file: IO[bytes], sequences: Sequences, dtype: np.dtype[Any]) -> NDArray[np.int64]:
    """Append every sequence and its separator; returns the sequence starts, i64 [s + 1]."""
    lengths: list[NDArray[np.int64]] = []
    num_sequences, room = 0, max_tokens(dtype)
    for rows in batches(sequences):
        check_tokens(rows, dtype, num_sequences)
        room -= rows.size + len(rows)
        if room < 0:
            raise SpanIndexError(
                f"a shard of {dtype.name} holds at most {max_tokens(dtype)} tokens, separators included, found more "
                f"from sequence {num_sequences} on; cut it into several shards"
            )
        separated = np.full((len(rows), rows.shape[1] + 1), np.iinfo(dtype).max, dtype)
        separated[:, :-1] = rows
        file.write(separated.data)
        lengths.append(np.full(len(rows), rows.shape[1] + 1, np.int64))
        num_sequences += len(rows)
    if num_sequences == 0:
        raise SpanIndexError("a shard needs at least one sequence, found none; do not build an empty shard")
    starts = np.zeros(num_sequences + 1, np.int64)
    np.cumsum(np.concatenate(lengths), out=starts[1:])
    return starts


def batches(sequences: Sequences) -> Iterator[NDArray[Any]]:
    """Arrays [k, length]: an array in cuts of about BATCH_TOKENS tokens, single sequences one by one."""
    if not isinstance(sequences, np.ndarray):
        for sequence in sequences:
            yield np.asarray(sequence)[np.newaxis]
        return
    if sequences.ndim != 2:
        raise SpanIndexError(
            f"sequences: expected an array [num_sequences, length] or arrays [length], found an array of shape "
            f"{list(sequences.shape)}; pass a list of arrays for differing lengths"
        )
    rows = max(1, BATCH_TOKENS // (sequences.shape[1] + 1))
    for first in range(0, len(sequences), rows):
        yield sequences[first : first + rows]


def check_tokens(rows: NDArray[Any], dtype: np.dtype[Any], first_ordinal: int) -> None:
    """Refuse what is no integer array [k, length], and token ids that the dtype or the separator rules out."""
    if rows.ndim != 2 or (rows.size and rows.dtype.kind not in "iu"):
        raise SpanIndexError(
            f"sequence {first_ordinal}: expected integer token ids in one dimension, found {rows.dtype} of shape "
            f"{list(rows.shape[1:])}"
        )
    separator = int(np.iinfo(dtype).max)
    if rows.size and (int(rows.min()) < 0 or int(rows.max()) >= separator):
        row, offset = np.argwhere((rows < 0) | (rows >= separator))[0]
        raise SpanIndexError(
            f"sequence {first_ordinal + row}, offset {offset}: expected token ids 0 … {separator - 1} ({separator} is "
            f"the separator of {dtype.name} shards), found {rows[row, offset]}; "
            f"{'use uint32' if dtype.itemsize == 2 else 'correct the export'}"
        )


def write_sorted(file: IO[bytes], path: Path, sections: dict[str, Section]) -> None:
    """Sort the tokens that the file holds, and write the suffix array and everything that follows from it."""
    tokens_at = sections["tokens"]
    file.flush()
    tokens: NDArray[Any] = np.memmap(path, tokens_at.dtype, "r", tokens_at.offset, tokens_at.shape)
    tokens = tokens.view(np.ndarray)
    suffix_array = sort_suffixes(tokens)
    write_section(file, sections["suffix_array"], suffix_array)
    fingerprints, table, ranges = (
        np.empty(sections[name].shape, sections[name].dtype) for name in ("fingerprints", "prefix_table", "block_range")
    )
    fill_side_arrays(tokens, suffix_array, fingerprints, table, ranges)
    write_section(file, sections["fingerprints"], fingerprints)
    write_section(file, sections["prefix_table"], table)
    write_section(file, sections["block_range"], ranges)
    write_section(file, sections["superblock_range"], widen(ranges))


def sort_suffixes(tokens: NDArray[Any]) -> NDArray[np.int32]:
    """Positions of the tokens in numeric order of their suffixes, i32 [n]; the shorter of two equal ones first."""
    big_endian = tokens.byteswap().view(np.uint8)
    with threadpool_limits(1, user_api="openmp"):  # a job is to take one CPU, not all that a training node has
        byte_ranks: NDArray[np.int32] = divsufsort(big_endian)
    kept = keep_aligned(byte_ranks, tokens.dtype.itemsize)
    return byte_ranks[:kept]


def widen(ranges: NDArray[np.int32]) -> NDArray[np.int32]:
    """Block ranges [blocks, 2] to superblock ranges."""
    firsts = np.arange(0, len(ranges), SUPERBLOCK // RANGE)
    smallest, largest = np.minimum.reduceat(ranges[:, 0], firsts), np.maximum.reduceat(ranges[:, 1], firsts)
    return np.stack([smallest, largest], axis=1)


def write_section(file: IO[bytes], section: Section, array: NDArray[Any]) -> None:
    """Write one array at its place."""
    file.seek(section.offset)
    file.write(np.ascontiguousarray(array, section.dtype).data)
