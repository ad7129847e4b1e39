"""Reads the frames of an attempt's segment files, compacted or not: no byte is parsed before its hash was checked.

Files are sealed and compacted while they are read. So a file that is gone is looked for under its other name, and then in
a compaction.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from train_hooks.export_format.acknowledgement import Ack
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.filesystem import FileSystem
from train_hooks.export_format.paths import CompactionName, SegmentFileName
from train_hooks.export_format.reading.chain import SegmentFile
from train_hooks.export_format.reading.compacted import CompactedFiles, MissingParquet
from train_hooks.export_format.records import StepRecord
from train_hooks.export_format.schema import decode_frame, decode_step_records

__all__ = ["FrameReader", "StepFrame"]

_BLOCK_BYTES = 8 << 20
_MAX_SCHEMAS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFrame:
    """One writer's part of one step: checked, parsed, not yet turned into rows. records_json: `records` as they are
    stored."""

    dp_rank: int
    ack: Ack
    batch: pa.RecordBatch
    records: tuple[StepRecord, ...]
    records_json: str


class FrameReader:
    """The frames in one attempt's directory."""

    def __init__(self, file_system: FileSystem, directory: Path, format_version: int) -> None:
        self._file_system, self._directory, self._format_version = file_system, directory, format_version
        self._opened: dict[Path, CompactedFiles] = {}
        self._schemas: dict[SegmentFileName, bytes] = {}

    def frames_of(self, file: SegmentFile, acks: Sequence[Ack]) -> Iterator[StepFrame]:
        """Frames of one file, in order; those that follow one another are read at once, up to 8 MiB. Raises DamageError."""
        for block in _blocks(acks):
            compacted = file.compacted
            if compacted is None:
                try:
                    schema, frames = self._schema(file), self._checked_bytes(file, block)
                except FileNotFoundError:  # it was compacted since it was listed, or it is lost
                    compacted = self.compactions(self._file_system.names(self._directory)).get(file.name)
                    if compacted is None:
                        raise DamageError(
                            f"{self._directory / file.name.data} is missing; restore it from a copy of the export"
                        ) from None
                else:
                    for ack, frame in zip(block, frames, strict=True):
                        yield self._parsed(file, ack, *decode_frame(schema, frame, self._format_version))
                    continue
            for ack in block:
                try:
                    found = compacted.frame(file.name.number, ack, self._format_version)
                except MissingParquet:
                    newer = self.compactions(self._file_system.names(self._directory)).get(file.name)
                    if newer is None or newer is compacted:
                        raise
                    compacted = newer
                    found = compacted.frame(file.name.number, ack, self._format_version)
                yield self._parsed(file, ack, *found)

    def compactions(self, entries: Sequence[str]) -> dict[SegmentFileName, CompactedFiles]:
        """Segment file → the newest compaction that holds its rows. entries: the names in the directory."""
        found: dict[SegmentFileName, CompactedFiles] = {}
        for entry in entries:
            if CompactionName.parse(entry) is not None and entry.endswith(".json"):
                path = self._directory / entry
                if path not in self._opened:
                    try:
                        self._opened[path] = CompactedFiles(self._file_system, path)
                    except FileNotFoundError:  # a takedown replaced it since it was listed
                        return self.compactions(self._file_system.names(self._directory))
                for name in self._opened[path].names():
                    before = found.get(name)
                    if before is None or before.name.version < self._opened[path].name.version:
                        found[name] = self._opened[path]
        return found

    def _parsed(self, file: SegmentFile, ack: Ack, batch: pa.RecordBatch, records_json: str) -> StepFrame:
        if batch.num_rows != ack.num_rows:
            raise DamageError(
                f"{file.data_path}: expected {ack.num_rows} rows in frame {ack.number}, found {batch.num_rows}"
            )
        try:
            records = decode_step_records(records_json) if records_json else ()
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DamageError(
                f"{file.data_path}: the step records of frame {ack.number} match their hash and are none: {error}"
            ) from error
        return StepFrame(dp_rank=file.name.dp_rank, ack=ack, batch=batch, records=records, records_json=records_json)

    def _schema(self, file: SegmentFile) -> bytes:
        """The schema frame of a file, which is read once."""
        found = self._schemas.get(file.name)
        if found is None:
            (found,) = self._checked_bytes(file, [file.acks[0]])
            if len(self._schemas) >= _MAX_SCHEMAS:
                self._schemas.clear()
            self._schemas[file.name] = found
        return found

    def _checked_bytes(self, file: SegmentFile, acks: Sequence[Ack]) -> list[bytes]:
        """The bytes of frames that follow one another, in one read, each checked against its hash."""
        start, end = acks[0].start, acks[-1].end
        try:
            data = self._file_system.read(file.data_path, start, end)
        except FileNotFoundError:  # it was sealed since it was listed
            data = self._file_system.read(self._directory / file.name.data, start, end)
        frames = [data[ack.start - start : ack.end - start] for ack in acks]
        for ack, frame in zip(acks, frames, strict=True):
            if len(frame) != ack.end - ack.start or hashlib.sha256(frame).digest() != ack.frame_sha256:
                raise DamageError(
                    f"{file.data_path}: bytes {ack.start}–{ack.end} (step {ack.global_step}) do not match the hash that "
                    "was acknowledged; run `kiseki export verify` and restore the file from a copy"
                )
        return frames


def _blocks(acks: Sequence[Ack]) -> Iterator[list[Ack]]:
    """Acknowledgements whose frames follow one another, up to 8 MiB at a time, at least one."""
    block: list[Ack] = []
    for ack in acks:
        if block and (ack.start != block[-1].end or ack.end - block[0].start > _BLOCK_BYTES):
            yield block
            block = []
        block.append(ack)
    if block:
        yield block
