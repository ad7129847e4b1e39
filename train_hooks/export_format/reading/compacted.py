"""Reading compacted segment files: Parquet of which no byte is parsed before its hash was checked.

The manifest divides each Parquet file into pieces that cover it without a hole, with a SHA-256 each: one for each row
group, and one for the footer. A read checks the pieces that it touches, so one frame costs one row group, not the file.
"""

import dataclasses
import hashlib
import io
import threading
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from train_hooks.export_format.acknowledgement import Ack
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.filesystem import FileSystem
from train_hooks.export_format.json_files import decode_document, encode_document
from train_hooks.export_format.paths import CompactionName, SegmentFileName
from train_hooks.export_format.schema import row_fields

__all__ = [
    "CompactedFiles",
    "CompactionManifest",
    "HashedFile",
    "HashedRange",
    "MissingParquet",
    "ReplacedFile",
    "is_superfluous",
    "read_manifest",
]

COMPACTION_FORMAT = "kiseki-compaction-v1"


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedRange:
    """A byte range of a Parquet file and its hash."""

    start: int
    end: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HashedFile:
    """One Parquet file: name, size and pieces, which cover it from 0 to `size_bytes`."""

    name: str
    size_bytes: int
    pieces: tuple[HashedRange, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplacedFile:
    """A sealed segment file whose data the compaction holds: its seal, and the hash of its data as the seal names it."""

    file_number: int
    seal_sha256: str
    data_sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactionManifest:
    """What a compaction holds. Seals and acknowledgement records stay where they are."""

    run_id: str
    attempt: int
    attempt_sha256: str
    dp_rank: int
    rows: HashedFile
    frames: HashedFile
    replaced: tuple[ReplacedFile, ...]

    def encode(self) -> bytes:
        """The manifest file's bytes."""
        return encode_document({"format": COMPACTION_FORMAT, **dataclasses.asdict(self)})


def read_manifest(path: Path, data: bytes) -> CompactionManifest:
    """The manifest in `data`, its own hash checked first. Raises DamageError."""
    document: dict[str, Any] = decode_document(path, data)
    if document.pop("format", None) != COMPACTION_FORMAT:
        raise DamageError(f'{path}: expected "format": "{COMPACTION_FORMAT}"; a newer kiseki may read it')
    document.pop("sha256")
    try:
        rows, frames = (_hashed_file(document.pop(name)) for name in ("rows", "frames"))
        replaced = tuple(ReplacedFile(**item) for item in document.pop("replaced"))
        return CompactionManifest(**document, rows=rows, frames=frames, replaced=replaced)
    except (TypeError, KeyError) as error:
        raise DamageError(f"{path} has other keys than a compaction: {error}; a newer kiseki may read it") from error


def _hashed_file(item: dict[str, Any]) -> HashedFile:
    return HashedFile(**{**item, "pieces": tuple(HashedRange(**piece) for piece in item["pieces"])})


def is_superfluous(name: CompactionName, there: Collection[str]) -> bool:
    """Whether all that a compaction without a manifest would replace is still, or again, held by other files."""
    others = [parsed[0] for entry in there if (parsed := CompactionName.parse(entry)) and entry == parsed[0].manifest]
    return all(file.data in there or any(other.covers(file) for other in others) for file in name.files())


class MissingParquet(DamageError):
    """A compaction without its Parquet: it is lost, or a takedown has replaced it since the manifest was read."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is missing; restore it from a copy of the export")


class _CheckedFile(io.RawIOBase):
    """A file of which every byte that is read was hashed with its piece."""

    def __init__(self, file_system: FileSystem, path: Path, file: HashedFile) -> None:
        self._fs, self._path, self._file = file_system, path, file
        self._starts = [piece.start for piece in file.pieces]
        self._position = 0
        self._cached: dict[int, bytes] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size_bytes}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        end = self._file.size_bytes if size < 0 else min(self._position + size, self._file.size_bytes)
        parts = []
        while self._position < end:
            index = bisect_right(self._starts, self._position) - 1
            piece = self._file.pieces[index]
            stop = min(end, piece.end)
            parts.append(self.piece(index)[self._position - piece.start : stop - piece.start])
            self._position = stop
        return b"".join(parts)

    def piece(self, index: int) -> bytes:
        """One piece's bytes. Raises DamageError where they do not match their hash."""
        found = self._cached.get(index)
        if found is not None:
            return found
        piece = self._file.pieces[index]
        data = self._fs.read(self._path, piece.start, piece.end)
        if hashlib.sha256(data).hexdigest() != piece.sha256:
            raise DamageError(
                f"{self._path}: bytes {piece.start}–{piece.end} do not match the hash that its manifest names; "
                "restore it from a copy of the export"
            )
        if len(self._cached) >= 3:
            self._cached.pop(next(iter(self._cached)))
        self._cached[index] = data
        return data


class CompactedFiles:
    """One compaction. Opening reads the manifest; the Parquet files are opened on first use."""

    def __init__(self, file_system: FileSystem, path: Path) -> None:
        """Raises DamageError where the manifest is damaged."""
        self.path, self._fs = path, file_system
        self.manifest = read_manifest(path, file_system.read(path))
        parsed = CompactionName.parse(path.name)
        numbers = [item.file_number for item in self.manifest.replaced]
        if parsed is None or (parsed[0].rows, parsed[0].frames) != (self.manifest.rows.name, self.manifest.frames.name):
            raise DamageError(f"{path} is another compaction's manifest; restore it from a copy of the export")
        if numbers != list(range(parsed[0].first_number, parsed[0].last_number + 1)):
            raise DamageError(f"{path}: expected the files that its name says, found {numbers}")
        self.name = parsed[0]
        self._lock = threading.Lock()
        self._frames: dict[tuple[int, int], tuple[int, int, int, str | None]] | None = None
        self._rows: pq.ParquetFile | None = None
        self._group: tuple[int, pa.Table] | None = None

    def names(self) -> Iterator[SegmentFileName]:
        """The segment files that it replaces."""
        for item in self.manifest.replaced:
            yield SegmentFileName(dp_rank=self.manifest.dp_rank, number=item.file_number)

    def frame(self, file_number: int, ack: Ack, format_version: int) -> tuple[pa.RecordBatch, str]:
        """The batch of one frame, and its step records as JSON ('' for none). Raises DamageError.

        format_version: that of the attempt.
        """
        with self._lock:
            place = self._frame_table().get((file_number, ack.number))
            if place is None:
                raise DamageError(f"{self.path}: frame {ack.number} of file {file_number} is missing")
            group, first_row, num_rows, text = place
            return self._batch(group, first_row, num_rows, format_version), text or ""

    def num_frames(self, file_number: int) -> int:
        """How many frames of a file it holds."""
        return sum(number == file_number for number, _ in self._frame_table())

    def faults(self, file: HashedFile) -> list[str]:
        """What is wrong with the bytes of one of its Parquet files, every piece checked."""
        path = self.path.with_name(file.name)
        if not self._fs.exists(path):
            return ["is missing"]
        size = self._fs.size(path)
        if size != file.size_bytes:
            return [f"has {size} bytes, its manifest says {file.size_bytes}"]
        position, found = 0, []
        for piece in file.pieces:
            if piece.start != position or piece.end < piece.start:
                return ["is not covered by the pieces of its manifest"]
            if hashlib.sha256(self._fs.read(path, piece.start, piece.end)).hexdigest() != piece.sha256:
                found.append(f"bytes {piece.start}–{piece.end} do not match their hash")
            position = piece.end
        return found if position == file.size_bytes else [*found, "is not covered by the pieces of its manifest"]

    def _batch(self, group: int, first_row: int, num_rows: int, format_version: int) -> pa.RecordBatch:
        fields = row_fields(format_version)
        if num_rows == 0:
            return pa.record_batch([pa.array([], field.type) for field in fields], schema=pa.schema(fields))
        if self._group is None or self._group[0] != group:
            self._group = (group, self._read_group(group, fields))
        return self._group[1].slice(first_row, num_rows).combine_chunks().to_batches()[0]

    def _read_group(self, group: int, fields: list[pa.Field]) -> pa.Table:
        names = [field.name for field in fields]
        try:
            if self._rows is None:
                self._rows = self._open(self.manifest.rows)
            table = self._rows.read_row_group(group, columns=names, use_threads=False)
            table = table.select(names).replace_schema_metadata(None)
            table.validate(full=True)
        except FileNotFoundError as error:
            raise MissingParquet(self.path.with_name(self.manifest.rows.name)) from error
        except (pa.ArrowException, OSError, KeyError, IndexError) as error:
            raise DamageError(f"{self.manifest.rows.name} matches its hash and is no such Parquet: {error}") from error
        if not table.schema.equals(pa.schema(fields)):
            raise DamageError(f"{self.manifest.rows.name} has other columns: {table.schema.names}")
        return table

    def _open(self, file: HashedFile) -> pq.ParquetFile:
        source = pa.PythonFile(_CheckedFile(self._fs, self.path.with_name(file.name), file), mode="r")
        return pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=False)

    def _frame_table(self) -> dict[tuple[int, int], tuple[int, int, int, str | None]]:
        if self._frames is None:
            try:
                table = self._open(self.manifest.frames).read(use_threads=False)
                columns = [
                    table[name].to_pylist()
                    for name in ("file_number", "frame_number", "row_group", "first_row", "num_rows", "step_records")
                ]
            except FileNotFoundError as error:
                raise MissingParquet(self.path.with_name(self.manifest.frames.name)) from error
            except (pa.ArrowException, OSError, KeyError) as error:
                raise DamageError(f"{self.manifest.frames.name} matches its hash and is no Parquet: {error}") from error
            self._frames = {(row[0], row[1]): (row[2], row[3], row[4], row[5]) for row in zip(*columns, strict=True)}
        return self._frames
