"""Files of an export as somebody opens them who has them all: rows and step records to change, and hashes made anew.

He can rewrite Parquet, manifests and seals with all the hashes in them. Acknowledgement records he leaves as they are.
"""

import abc
import dataclasses
import hashlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.simulated_job.memory_files import MemoryFileSystem
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.reading.chain import SegmentFile
from train_hooks.export_format.reading.compacted import CompactedFiles, HashedFile, HashedRange
from train_hooks.export_format.reading.reader import AttemptReader
from train_hooks.export_format.schema import file_metadata, row_schema
from train_hooks.export_format.seals import read_seal

__all__ = ["Compacted", "OpenedFile", "Sealed"]

Item = dict[str, Any]


@dataclass(kw_only=True, slots=True)
class OpenedFile(abc.ABC):
    """rows: every row, in the order of the frames. frames: what each holds, and its step records as JSON or None."""

    attempt: AttemptReader
    dp_rank: int
    rows: list[Item]
    frames: list[Item]

    @abc.abstractmethod
    def save(self, files: MemoryFileSystem) -> dict[Path, bytes]:
        """Write it back with hashes that hold. Gives what the files held before."""

    @abc.abstractmethod
    def rows_of(self, frame: Item) -> Sequence[Item]:
        """The rows of a frame."""


@dataclass(kw_only=True, slots=True)
class Compacted(OpenedFile):
    """The two Parquet files of a compaction."""

    compacted: CompactedFiles
    groups: list[int]
    schemas: tuple[pa.Schema, pa.Schema]

    @classmethod
    def open(cls, attempt: AttemptReader, compacted: CompactedFiles) -> "Compacted":
        """Reads both files whole."""
        read, manifest = attempt.run.file_system.read, compacted.manifest
        rows, frames = (
            pq.ParquetFile(io.BytesIO(read(compacted.path.with_name(part.name))))
            for part in (manifest.rows, manifest.frames)
        )
        groups = [rows.metadata.row_group(index).num_rows for index in range(rows.num_row_groups)]
        return cls(
            attempt=attempt, dp_rank=manifest.dp_rank, compacted=compacted, groups=groups,
            schemas=(rows.schema_arrow, frames.schema_arrow), rows=rows.read().to_pylist(), frames=frames.read().to_pylist(),
        )  # fmt: skip

    def rows_of(self, frame: Item) -> Sequence[Item]:
        first = sum(self.groups[: frame["row_group"]]) + frame["first_row"]
        return self.rows[first : first + frame["num_rows"]]

    def save(self, files: MemoryFileSystem) -> dict[Path, bytes]:
        manifest, path = self.compacted.manifest, self.compacted.path
        parts = [
            _parquet(part.name, schema, items, groups)
            for part, schema, items, groups in (
                (manifest.rows, self.schemas[0], self.rows, self.groups),
                (manifest.frames, self.schemas[1], self.frames, [len(self.frames)]),
            )
        ]
        made = dataclasses.replace(manifest, rows=parts[0][0], frames=parts[1][0])
        wanted = {path.with_name(part.name): data for part, data in parts} | {path: made.encode()}
        return _put(files, wanted)


def _parquet(name: str, schema: pa.Schema, items: list[Item], groups: list[int]) -> tuple[HashedFile, bytes]:
    sink, cuts, done = io.BytesIO(), [0], 0
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        for size in groups:
            if size:
                table = pa.Table.from_pylist(items[done : done + size], schema=schema)
                writer.write_table(table, row_group_size=size)
                cuts.append(sink.tell())
            done += size
    data = sink.getvalue()
    cuts.append(len(data))
    if name.endswith(".frames.parquet"):
        cuts = [0, len(data)]
    pieces = tuple(
        HashedRange(start=start, end=end, sha256=hashlib.sha256(data[start:end]).hexdigest())
        for start, end in itertools.pairwise(cuts)
    )
    return HashedFile(name=name, size_bytes=len(data), pieces=pieces), data


@dataclass(kw_only=True, slots=True)
class Sealed(OpenedFile):
    """A sealed segment file that is in no compaction."""

    file: SegmentFile

    @classmethod
    def open(cls, attempt: AttemptReader, file: SegmentFile) -> "Sealed":
        """Reads the whole file."""
        rows: list[Item] = []
        frames: list[Item] = []
        for ack in file.acks:
            if ack.kind in (AckKind.STEP, AckKind.NOTE):
                frame = attempt.frame(file, ack)
                own = {"frame_number": ack.number, "first": len(rows), "num_rows": ack.num_rows}
                frames.append({**own, "step_records": frame.records_json or None})
                rows += frame.batch.to_pylist()
        return cls(attempt=attempt, dp_rank=file.name.dp_rank, file=file, rows=rows, frames=frames)

    def rows_of(self, frame: Item) -> Sequence[Item]:
        return self.rows[frame["first"] : frame["first"] + frame["num_rows"]]

    def save(self, files: MemoryFileSystem) -> dict[Path, bytes]:
        info, file, run = self.attempt.info, self.file, self.attempt.run.info
        schema = row_schema(file_metadata(run, info, file.name), info.format_version)
        frames = {frame["frame_number"]: frame for frame in self.frames}
        before = files.read(file.data_path)
        data = b"".join(
            _frame(schema, self.rows_of(frames[ack.number]), frames[ack.number]["step_records"])
            if ack.number in frames
            else before[ack.start : ack.end]
            for ack in file.acks
        )
        assert data != before, "the change is not in the data"
        path = file.data_path.with_name(file.name.seal)
        seal = read_seal(path, files.read(path))
        part = dataclasses.replace(seal.data, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        made = dataclasses.replace(seal, data=part)
        wanted = {file.data_path: data, path: made.encode()}
        for later in self.attempt.writers()[file.name.dp_rank].files[file.name.number + 1 :]:
            path = later.data_path.with_name(later.name.seal)
            if files.exists(path):
                made = dataclasses.replace(read_seal(path, files.read(path)), previous_seal_sha256=made.sha256)
                wanted[path] = made.encode()
        return _put(files, wanted)


def _frame(schema: pa.Schema, rows: Sequence[Item], step_records: str | None) -> bytes:
    """One record batch message, as the writer would make it."""
    sink = pa.BufferOutputStream()
    metadata = {b"kiseki.step_records": step_records} if step_records else None
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.RecordBatch.from_pylist(list(rows), schema=schema), custom_metadata=metadata)
        tail = sink.tell()
    return bytes(memoryview(sink.getvalue())[len(schema.serialize()) : tail])


def _put(files: MemoryFileSystem, wanted: dict[Path, bytes]) -> dict[Path, bytes]:
    before = {path: files.read(path) for path in wanted}
    for path, data in wanted.items():
        files.put(path, data)
    return before
