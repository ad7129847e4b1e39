"""The files of a corpus: found, read whatever compressed them, hashed as they are read.

1. A corpus is a directory, searched to any depth and through links, or one file. Its files are those named `.jsonl`, `.ndjson`,
   `.json`, as they are or compressed (`.gz`, `.zst`, `.zstd`), and `.parquet`; hidden ones and those that stand beside
   RedPajama-V2's documents (quality signals, minhashes, duplicates) are left out. Order: by path, numbers in names as numbers,
   so that `train_2` comes before `train_10`.
2. A record is a line or a row. Lines count from 1, blank and bad ones too; rows of Parquet from 0.
3. What cannot be read is named, the first MAX_PROBLEMS of it, and the rest is read: a bad line costs itself, a file that is
   cut or damaged costs what comes behind.
4. Memory is bounded by the longest record, and a line longer than MAX_LINE_BYTES is a bad one.
"""

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from train_hooks.export_format.errors import InputError

__all__ = [
    "CorpusFile",
    "FileRead",
    "HashedFile",
    "Problems",
    "lines_of",
    "list_files",
    "missing_numbers",
    "records_of",
]

MAX_PROBLEMS, MAX_LINE_BYTES, ROWS_AT_ONCE = 20, 256 << 20, 256
MAX_MISSING_FILES = 10_000
"""More than these between two numbers: they are times or hashes, and count no files."""
ZSTD_BYTES = 1 << 16
"""Decompressed at once: as much before the place is lost where a file is cut, beside a block of zstandard's."""
PARQUET_COLUMNS = ("text", "raw_content", "id", "doc_id", "dump", "source", "meta", "metadata", "digest")
COMPRESSED = (".gz", ".zst", ".zstd")
_FILE = re.compile(r".+\.(?:(?:jsonl|ndjson|json)(?:\.gz|\.zst|\.zstd)?|parquet)")
_BESIDE = re.compile(r".+\.(?:signals\.json\.gz|minhash\.parquet|duplicates\.parquet)")
_NUMBER = re.compile(r"(\d+)(?!.*\d)")


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusFile:
    """One file; `name` is its path below the corpus, with `/`, or its own name where the corpus is one file."""

    path: Path
    name: str
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRead:
    """A file that was read to its end. sha256: of the file as it is, compressed. num_records: lines or rows."""

    name: str
    sha256: str
    num_records: int


@dataclass(kw_only=True, slots=True)
class Problems:
    """What could not be read: the first MAX_PROBLEMS of `number`."""

    first: list[str] = field(default_factory=list)
    number: int = 0

    def add(self, what: str) -> None:
        """One more."""
        self.number += 1
        if len(self.first) < MAX_PROBLEMS:
            self.first.append(what)


def list_files(corpus: Path) -> tuple[CorpusFile, ...]:
    """The files of a corpus, in order. Raises InputError where there is none."""
    if corpus.is_file():
        return (CorpusFile(path=corpus, name=corpus.name, size_bytes=corpus.stat().st_size),)
    if not corpus.is_dir():
        raise InputError(f"expected a corpus at {corpus}, a directory or a file, found none")
    found = [
        CorpusFile(path=path, name=path.relative_to(corpus).as_posix(), size_bytes=path.stat().st_size)
        for path in _below(corpus)
        if _belongs(path.relative_to(corpus))
    ]
    if not found:
        raise InputError(
            f"{corpus}: expected files named .jsonl, .json or .parquet, maybe with .gz or .zst behind it, found none"
        )
    return tuple(sorted(found, key=lambda file: _order(file.name)))


def _below(directory: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Every file, also behind links to directories; one that leads back to a directory above it is not followed."""
    place = directory.resolve()
    if place not in above:
        for path in directory.iterdir():
            if path.is_dir():
                yield from _below(path, (*above, place))
            elif path.is_file():
                yield path


def _belongs(path: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return not hidden and _FILE.fullmatch(path.name) is not None and _BESIDE.fullmatch(path.name) is None


def _order(name: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def missing_numbers(names: Sequence[str]) -> list[str]:
    """Names that their neighbours let expect: numbers between the first and the last, and up to the total of `1-of-9`."""
    there: dict[tuple[str, str], list[str]] = {}
    for name in names:
        stem, total = re.sub(r"(\d)-of-(\d+)", r"\1-of-", name), re.search(r"\d-of-(\d+)", name)
        match = _NUMBER.search(stem)
        if match is not None:
            ending = stem[match.end() :].replace("-of-", f"-of-{total[1]}" if total else "-of-", 1)
            there.setdefault((stem[: match.start()], ending), []).append(match[1])
    missing = []
    for (begin, ending), numbers in there.items():
        width = min(map(len, numbers)) if any(number.startswith("0") and number != "0" for number in numbers) else 1
        found = {int(number) for number in numbers}
        of = re.match(r"-of-(\d+)", ending)
        first = min(found) if of is None else int(max(found) == int(of[1]))
        last = max(found) if of is None else first + int(of[1]) - 1
        if last - first - len(found) < MAX_MISSING_FILES:
            missing += [
                f"{begin}{number:0{width}d}{ending}" for number in range(first, last + 1) if number not in found
            ]
    return missing


class HashedFile(io.RawIOBase):
    """A file whose bytes are hashed and counted as they are read, from its beginning to its end."""

    def __init__(self, path: Path, advance: Callable[[int], None] | None = None) -> None:
        self._file = path.open("rb", buffering=0)
        self.size_bytes = path.stat().st_size
        self._digest, self._advance = hashlib.sha256(), advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """As RawIOBase has it."""
        number = self._file.readinto(buffer) or 0
        self._digest.update(memoryview(buffer)[:number])
        if self._advance is not None:
            self._advance(number)
        return number

    def close(self) -> None:
        """Nothing: what reads a stream closes it, and its end is still to be hashed. Leaving the `with` block closes it."""

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def sha256(self) -> str:
        """Of the whole file: what was not read yet is read now."""
        while self.read(1 << 20):
            pass
        return self._digest.hexdigest()


def lines_of(file: HashedFile, name: str, problems: Problems) -> Iterator[tuple[int, bytes]]:
    """(number, line without its end) of each line that is not blank; `name` says how it is compressed."""
    number = 0
    try:
        with _decompressed(file, name) as stream:
            if name.endswith(COMPRESSED) and not file.size_bytes:
                problems.add(f"{name}: expected a compressed file, found one of no bytes; restore it")
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                    problems.add(
                        f"{name} line {number}: longer than {MAX_LINE_BYTES >> 20} MiB; is it one JSON object a line?"
                    )
                    while line and not line.endswith(b"\n"):
                        line = stream.readline(MAX_LINE_BYTES)
                elif line.strip():
                    yield number, line.rstrip(b"\r\n")
    except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
        problems.add(f"{name}: cut or damaged behind line {number:,}: {error}; the rest of the file is not read")


def _decompressed(file: HashedFile, name: str) -> BinaryIO:
    raw = io.BufferedReader(file, 1 << 20)
    if name.endswith(".gz"):
        return gzip.GzipFile(fileobj=raw)  # type: ignore[return-value]  # it reads like one
    if name.endswith((".zst", ".zstd")):
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"), ZSTD_BYTES)
    return raw


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object on a line. Raises ValueError, which says what was found."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8, found other bytes at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a JSON object, {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {type(record).__name__}")
    return record


def records_of(
    file: CorpusFile, problems: Problems, advance: Callable[[int], None] | None, done: Callable[[FileRead], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, record) of each line or row of a file that can be read. `done` is called once it was read to its end."""
    if file.name.endswith(".parquet"):
        yield from _rows(file, problems, advance, done)
        return
    number = 0
    with HashedFile(file.path, advance) as stream:
        for number, line in lines_of(stream, file.name, problems):
            try:
                record = parse_line(line)
            except ValueError as error:
                problems.add(f"{file.name} line {number}: {error}")
                continue
            yield number, record
        done(FileRead(name=file.name, sha256=stream.sha256(), num_records=number))


def _rows(
    file: CorpusFile, problems: Problems, advance: Callable[[int], None] | None, done: Callable[[FileRead], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    try:
        with HashedFile(file.path, advance) as stream:
            sha256 = stream.sha256()
        with pq.ParquetFile(file.path) as parquet:
            columns = [name for name in parquet.schema_arrow.names if name in PARQUET_COLUMNS]
            for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
                for record in _records(batch):
                    if isinstance(record, UnicodeDecodeError):
                        what = f"expected UTF-8, found other bytes at byte {record.start}"
                        problems.add(f"{file.name} row {number}: {what}")
                    else:
                        yield number, record
                    number += 1
        done(FileRead(name=file.name, sha256=sha256, num_records=number))
    except (OSError, pa.ArrowException) as error:
        problems.add(f"{file.name}: cut or damaged behind row {number:,}: {error}; the rest of the file is not read")


def _records(batch: pa.RecordBatch) -> Iterator[dict[str, Any] | UnicodeDecodeError]:
    """The rows, or why one is none."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for row in range(batch.num_rows):
        try:
            yield from batch.slice(row, 1).to_pylist()
        except UnicodeDecodeError as error:
            yield error
