"""The span index of one shard on disk: one file, seven memory-mapped arrays.

Rules:

1. The tokens of all sequences stand one after the other, each sequence followed by one separator, the largest value of
   the token dtype. The separator is no token: it never matches, hence no match crosses from a sequence into the next.
2. The suffix array is in numeric order of the token values. Suffixes that agree up to a separator stand in an order
   that no answer depends on.
3. `spans.bin` is a header page (JSON, padded with spaces), then the arrays, each on a 4,096-byte boundary, in the order
   of `SpanArrays`, little-endian. Sizes follow from three numbers of the header: token dtype, tokens, sequences. One file
   a shard keeps one file descriptor a shard: a run has thousands of shards.
4. The header is written last. A file that was cut short has no header and does not open.
5. Opening maps the file and reads the header and the prefix table (an eighth of a byte a token), which every look-up needs. All
   other access is random, and the kernel is told so: read-ahead would read a hundred times what a query needs.
"""

import json
import mmap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from train_hooks.export_format.errors import InputError

__all__ = ["BLOCK", "GRAM", "RANGE", "SUPERBLOCK", "SpanArrays", "SpanIndexError", "open_span_arrays"]

SPANS_FILE = "spans.bin"
FORMAT, FORMAT_VERSION = "kiseki span index", 3
PAGE = 4096
GRAM, SHORT = 8, 6
BLOCK = 128
RANGE = 256
SUPERBLOCK = 65_536
ARRAYS = (
    "tokens", "sequence_starts", "suffix_array", "fingerprints", "prefix_table", "block_range", "superblock_range",
)  # fmt: skip


class SpanIndexError(InputError):
    """A span index cannot be built, opened or asked as it was; the message says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanArrays:
    """The read-only arrays of one shard of n tokens (separators included) in s sequences.

    tokens            u16 | u32 [n]            sequences, each followed by the separator
    sequence_starts   i64 [s + 1]              position of the first token of each sequence; the last is n
    suffix_array      i32 [n]                  positions in numeric order of the suffixes that start there
    fingerprints      u16 [n]                  by suffix rank: hash of the suffix's first 6 tokens (11 bits) and 8 tokens (5)
    prefix_table      u64 [ceil(n/128), 2|4]   first 8 tokens of every 128th suffix, packed (2 words for u16, 4 for u32)
    block_range       i32 [ceil(n/256), 2]     smallest and largest position among 256 suffix ranks
    superblock_range  i32 [ceil(n/65536), 2]   the same among 65,536 suffix ranks
    """

    tokens: NDArray[Any]
    sequence_starts: NDArray[np.int64]
    suffix_array: NDArray[np.int32]
    fingerprints: NDArray[np.uint16]
    prefix_table: NDArray[np.uint64]
    block_range: NDArray[np.int32]
    superblock_range: NDArray[np.int32]
    row: NDArray[np.int64] = field(init=False, repr=False, compare=False)
    """Addresses of the arrays in their order, then their first lengths, and the words of a packed gram: i64 [ROW]. By it
    a kernel opens the arrays of any number of shards; it holds as long as this record does."""

    def __post_init__(self) -> None:
        arrays = [getattr(self, name) for name in ARRAYS]
        numbers = (
            [array.ctypes.data for array in arrays] + [len(array) for array in arrays] + [self.prefix_table.shape[1]]
        )
        object.__setattr__(self, "row", np.array(numbers, np.int64))

    @property
    def num_tokens(self) -> int:
        """Positions in the shard, separators included."""
        return len(self.tokens)

    @property
    def num_sequences(self) -> int:
        """Sequences in the shard; their ordinals are 0 … num_sequences - 1."""
        return len(self.sequence_starts) - 1

    @property
    def separator(self) -> int:
        """The value that follows each sequence: 65,535 or 4,294,967,295."""
        return (1 << (8 * self.tokens.itemsize)) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Where one array lies in the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the array, without padding."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def token_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """The little-endian u16 or u32 dtype that was asked for; SpanIndexError for any other."""
    try:
        found = np.dtype(dtype)
    except TypeError as error:
        raise SpanIndexError(f"token dtype: expected uint16 or uint32, found {dtype!r}; use one of them") from error
    if found.kind != "u" or found.itemsize not in (2, 4):
        raise SpanIndexError(f"token dtype: expected uint16 or uint32, found {found}; use one of them")
    return found.newbyteorder("<")


def file_layout(dtype: np.dtype[Any], num_tokens: int, num_sequences: int) -> dict[str, Section]:
    """Sections of the file by array name, in file order."""
    blocks, ranges, superblocks = (-(-num_tokens // size) for size in (BLOCK, RANGE, SUPERBLOCK))
    shapes: list[tuple[str, DTypeLike, tuple[int, ...]]] = [
        ("tokens", dtype, (num_tokens,)),
        ("sequence_starts", "<i8", (num_sequences + 1,)),
        ("suffix_array", "<i4", (num_tokens,)),
        ("fingerprints", "<u2", (num_tokens,)),
        ("prefix_table", "<u8", (blocks, GRAM * dtype.itemsize // 8)),
        ("block_range", "<i4", (ranges, 2)),
        ("superblock_range", "<i4", (superblocks, 2)),
    ]
    sections: dict[str, Section] = {}
    offset = PAGE
    for name, kind, shape in shapes:
        sections[name] = Section(dtype=np.dtype(kind), shape=shape, offset=offset)
        offset = next_page(offset + sections[name].size_bytes)
    return sections


def next_page(offset: int) -> int:
    """The first page boundary at or after a file offset in bytes."""
    return -(-offset // PAGE) * PAGE


def file_size(sections: dict[str, Section]) -> int:
    """Bytes of the whole file: the last section ends it, padded to a page."""
    last = list(sections.values())[-1]
    return next_page(last.offset + last.size_bytes)


def header_page(dtype: np.dtype[Any], num_tokens: int, num_sequences: int) -> bytes:
    """The header, PAGE bytes."""
    fields = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "token_dtype": dtype.name,
        "num_tokens": num_tokens,
        "num_sequences": num_sequences,
    }
    return json.dumps(fields).encode().ljust(PAGE - 1) + b"\n"


def open_span_arrays(directory: Path) -> SpanArrays:
    """Map the arrays of a shard, read-only.

    Raises FileNotFoundError, and SpanIndexError if the file is incomplete, of another format or of a wrong size.
    The file is believed beyond that: hashing it against the shard's manifest is the caller's task.
    """
    path = directory / SPANS_FILE
    with path.open("rb") as file:
        dtype, num_tokens, num_sequences = read_header(path, file.read(PAGE))
        sections = file_layout(dtype, num_tokens, num_sequences)
        expected, found = file_size(sections), file.seek(0, 2)
        if found != expected:
            raise SpanIndexError(f"{path}: expected {expected} bytes, found {found}; rebuild this shard")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    arrays: dict[str, NDArray[Any]] = {}
    advise(mapped, sections["prefix_table"])
    for name, section in sections.items():
        count = section.size_bytes // section.dtype.itemsize
        arrays[name] = np.frombuffer(mapped, section.dtype, count, section.offset).reshape(section.shape)
    opened = SpanArrays(**arrays)
    check_ends(path, opened)
    return opened


def read_header(path: Path, page: bytes) -> tuple[np.dtype[Any], int, int]:
    """(token dtype, num_tokens, num_sequences) of a header page; SpanIndexError if it is none of ours."""
    try:
        fields = json.loads(page)
        name, version = fields["format"], fields["version"]
        dtype, num_tokens, num_sequences = (
            fields["token_dtype"],
            int(fields["num_tokens"]),
            int(fields["num_sequences"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SpanIndexError(
            f"{path}: expected a span index, found no header (its build did not finish, or it is another file); "
            "rebuild this shard"
        ) from error
    if (name, version) != (FORMAT, FORMAT_VERSION):
        raise SpanIndexError(
            f"{path}: expected {FORMAT!r} version {FORMAT_VERSION}, found {name!r} version {version}; rebuild this shard"
        )
    if num_sequences < 1 or num_tokens < num_sequences:
        raise SpanIndexError(
            f"{path}: expected at least one sequence and a separator after each, "
            f"found {num_sequences} sequences in {num_tokens} tokens; rebuild this shard"
        )
    return token_dtype(dtype), num_tokens, num_sequences


def advise(mapped: mmap.mmap, wanted: Section) -> None:
    """Switch read-ahead off, but for one section, which is read at once; where the system can."""
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
        start = wanted.offset // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_NORMAL, start, wanted.offset + wanted.size_bytes - start)
        mapped.madvise(mmap.MADV_WILLNEED, start, wanted.offset + wanted.size_bytes - start)


def check_ends(path: Path, arrays: SpanArrays) -> None:
    """What the search relies on for not reading past the end: the last token is a separator, the starts end at n."""
    ends = (int(arrays.tokens[-1]), int(arrays.sequence_starts[0]), int(arrays.sequence_starts[-1]))
    expected = (arrays.separator, 0, arrays.num_tokens)
    if ends != expected:
        raise SpanIndexError(
            f"{path}: expected last token, first and last sequence start {expected}, found {ends}; rebuild this shard"
        )
