"""Compaction: the data of a writer's sealed segment files as one Parquet file, a third to a quarter of the size.

1. Only sealed files are compacted, a contiguous range of one writer of one attempt at a time, and every byte of them is
   checked against its seal and acknowledgement before it is copied.
2. Seals and acknowledgement records stay, byte for byte: the chain of a compacted writer is what it was. What goes is
   the data, and only after the Parquet files were synced, read back row for row, and their manifest was made durable.
3. Rows keep their leaves, so they still answer to the root hash of their step in the acknowledgement record.
4. Killed anywhere, a reader sees the same rows. Run again, it goes on: what has a manifest only loses its old data.
5. `rewrite` takes tokens out (`removal`): the next version of a compaction, or the first, with rows changed as it is
   told. It is in force when its manifest is durable, and what it replaces is removed after that.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from train_hooks.export_format.errors import DamageError, IncompleteError
from train_hooks.export_format.filesystem import FileLock
from train_hooks.export_format.json_files import info_sha256, write_once
from train_hooks.export_format.paths import IN_PROGRESS, CompactionName
from train_hooks.export_format.reading.chain import SegmentFile
from train_hooks.export_format.reading.compacted import (
    CompactedFiles,
    CompactionManifest,
    HashedFile,
    ReplacedFile,
    is_superfluous,
)
from train_hooks.export_format.reading.reader import AttemptReader, RunReader, StepFrame
from train_hooks.export_format.removal import removal_of, without_tokens
from train_hooks.export_format.schema import batch_of_rows
from train_hooks.export_format.seals import Seal, read_seal
from train_hooks.export_format.upkeep.compacted_content import CompactedContent, RowChange, frames_in, one_range

__all__ = ["Compaction", "batch_without_ranges", "compact", "remove_leftovers", "rewrite", "upkeep_lock"]

ROW_GROUP_BYTES, LEVEL = 8 << 20, 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Compaction:
    """What one compaction did."""

    manifest_path: Path
    num_files: int
    num_rows: int
    size_before_bytes: int
    size_after_bytes: int


def compact(
    run: RunReader, *, row_group_bytes: int = ROW_GROUP_BYTES, level: int = LEVEL, max_size_bytes: int = 1 << 30
) -> list[Compaction]:
    """Compact every range of sealed files that is not yet. Raises DamageError before anything is removed.

    Files are taken together up to `max_size_bytes` of data; a larger one is taken alone. Memory is about as much.
    """
    done = []
    with upkeep_lock(run):
        for attempt in run.attempts():
            for log in attempt.writers().values():
                for files in _ranges_to_compact(log.files, max_size_bytes):
                    done.append(_compact(attempt, files, row_group_bytes, level))
            remove_leftovers(attempt)
    return done


@contextlib.contextmanager
def upkeep_lock(run: RunReader) -> Iterator[None]:
    """Be the only process that compacts the run or takes tokens out of it. Raises IncompleteError where another one does."""
    lock: FileLock | None = None
    try:
        lock = run.file_system.lock(run.paths.run_json)
        if lock is None:
            raise IncompleteError(
                f"{run.paths.export}: another compaction or takedown is at work; run this again when it has ended"
            )
    except OSError as error:  # some shared file systems have no locks; then its operator sees to it
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
    try:
        yield
    finally:
        if lock is not None:
            lock.close()


def rewrite(
    attempt: AttemptReader, files: Sequence[SegmentFile], change: RowChange, *, level: int = LEVEL
) -> Compaction:
    """Write sealed files anew, with rows changed: those of one compaction, all of them, or one that is in none.

    `change` gives the same batch where a frame stays as it is. Raises DamageError before anything is removed.
    """
    before = files[0].compacted
    if before is None:
        return _compact(attempt, files, ROW_GROUP_BYTES, level, change=change)
    for part in (before.manifest.rows, before.manifest.frames):
        for fault in before.faults(part):
            raise DamageError(f"{before.path.with_name(part.name)} {fault}; restore it from a copy of the export")
    done = _compact(attempt, files, ROW_GROUP_BYTES, level, version=before.name.version + 1, change=change)
    _remove_versions_below(attempt, dataclasses.replace(before.name, version=before.name.version + 1))
    return done


def _ranges_to_compact(files: Sequence[SegmentFile], max_size_bytes: int) -> Iterator[list[SegmentFile]]:
    found: list[SegmentFile] = []
    for file in files:
        fits = sum(other.believed_size_bytes for other in found) + file.believed_size_bytes <= max_size_bytes
        wanted = file.sealed and file.compacted is None
        if found and not (wanted and fits):
            yield found
            found = []
        if wanted:
            found.append(file)
    if found:
        yield found


def _compact(
    attempt: AttemptReader, files: Sequence[SegmentFile], row_group_bytes: int, level: int, *, version: int = 0,
    change: RowChange | None = None,
) -> Compaction:  # fmt: skip
    file_system, directory = attempt.run.file_system, attempt.directory
    name = CompactionName(
        dp_rank=files[0].name.dp_rank, first_number=files[0].name.number, last_number=files[-1].name.number,
        version=version,
    )  # fmt: skip
    seals = [_checked_seal(attempt, file) for file in files]
    data = CompactedContent(attempt, files, row_group_bytes, level, change)
    parts = {}
    for part_name, content, pieces in (
        (name.rows, data.rows, data.pieces),
        (name.frames, data.frames, one_range(data.frames)),
    ):
        for stale in (part_name + IN_PROGRESS, part_name):
            if file_system.exists(directory / stale):
                file_system.remove(directory / stale)
        write_once(file_system, directory / part_name, content)
        parts[part_name] = HashedFile(name=part_name, size_bytes=len(content), pieces=pieces)
    manifest = CompactionManifest(
        run_id=attempt.info.run_id,
        attempt=attempt.info.attempt,
        attempt_sha256=info_sha256(attempt.info),
        dp_rank=name.dp_rank,
        rows=parts[name.rows],
        frames=parts[name.frames],
        replaced=tuple(
            ReplacedFile(file_number=seal.file_number, seal_sha256=seal.sha256, data_sha256=seal.data.sha256)
            for seal in seals
        ),
    )
    path = directory / name.manifest
    _publish_manifest(attempt, files, path, manifest.encode(), change)
    _remove_replaced(attempt, files)
    return Compaction(
        manifest_path=path,
        num_files=len(files),
        num_rows=sum(seal.num_rows for seal in seals),
        size_before_bytes=sum(seal.data.size_bytes for seal in seals),
        size_after_bytes=len(data.rows) + len(data.frames),
    )


def _publish_manifest(
    attempt: AttemptReader, files: Sequence[SegmentFile], path: Path, data: bytes, change: RowChange | None
) -> None:
    """Make the manifest durable once what it names reads back as the very rows of the segment files."""
    file_system = attempt.run.file_system
    unfinished = path.with_name(path.name + IN_PROGRESS)
    if file_system.exists(unfinished):
        file_system.remove(unfinished)
    file = file_system.create(unfinished)
    try:
        file.write(data)
        file.datasync()
    finally:
        file.close()
    _expect_same_rows(attempt, files, CompactedFiles(file_system, unfinished), change)
    file_system.rename(unfinished, path)
    file_system.sync_directory(path.parent)


def _expect_same_rows(
    attempt: AttemptReader, files: Sequence[SegmentFile], compacted: CompactedFiles, change: RowChange | None
) -> None:
    for file, ack in frames_in(files):
        frame = attempt.frame(file, ack)
        batch, records_json = compacted.frame(file.name.number, ack, attempt.info.format_version)
        expected = frame.batch if change is None else change(frame)
        if not _same_bits(batch, expected) or records_json != frame.records_json:
            raise DamageError(
                f"{compacted.path}: frame {ack.number} of {file.data_path} came back otherwise than it was written; "
                "nothing was removed: look for a faulty disk or memory"
            )


def _same_bits(batch: pa.RecordBatch, expected: pa.RecordBatch) -> bool:
    """Whether two batches have the same bits. `RecordBatch.equals` says no where a loss is NaN."""
    if batch.equals(expected):
        return True
    return batch.schema.equals(expected.schema) and _bits(batch) == _bits(expected)


def _bits(batch: pa.RecordBatch) -> bytes:
    """The bits of a batch that stands alone in memory, whatever it was cut from."""
    whole = pa.Table.from_batches([batch.replace_schema_metadata(None)])
    copied = whole.take(pa.array(range(batch.num_rows), pa.int64())).combine_chunks().to_batches()
    return b"".join(each.serialize().to_pybytes() for each in copied)


def _checked_seal(attempt: AttemptReader, file: SegmentFile) -> Seal:
    file_system = attempt.run.file_system
    path = attempt.directory / file.name.seal
    seal = read_seal(path, file_system.read(path))
    for part in (seal.data, seal.acks) if file.compacted is None else (seal.acks,):
        found = hashlib.sha256(file_system.read(attempt.directory / part.name)).hexdigest()
        if found != part.sha256:
            raise DamageError(
                f"{attempt.directory / part.name}: expected SHA-256 {part.sha256}, found {found}; restore it from a copy"
            )
    return seal


def remove_leftovers(attempt: AttemptReader) -> None:
    """Remove what compactions that died left behind: replaced data, once both were compared again, and unused Parquet."""
    file_system, directory = attempt.run.file_system, attempt.directory
    for file in [file for log in attempt.writers().values() for file in log.files]:
        if file.compacted is None:
            continue
        if attempt.run.file_system.exists(attempt.directory / file.name.data):
            change = functools.partial(_as_removed, attempt, file.compacted, file.name.number)
            _expect_same_rows(attempt, [dataclasses.replace(file, compacted=None)], file.compacted, change)
            _remove_replaced(attempt, [file])
        _remove_versions_below(attempt, file.compacted.name)
    there = set(file_system.names(directory))
    for entry in sorted(there):
        parsed = CompactionName.parse(entry)
        if (
            parsed
            and entry != parsed[0].manifest
            and parsed[0].manifest not in there
            and is_superfluous(parsed[0], there)
        ):
            file_system.remove(directory / entry)


def _as_removed(
    attempt: AttemptReader, compacted: CompactedFiles, file_number: int, frame: StepFrame
) -> pa.RecordBatch:
    """A frame without the tokens that the compacted one has lost."""
    batch, _ = compacted.frame(file_number, frame.ack, attempt.info.format_version)
    if _same_bits(batch, frame.batch) or batch.num_rows != frame.batch.num_rows:
        return frame.batch
    kept = attempt.rows(dataclasses.replace(frame, batch=batch))
    removals = [removal_of(row) for row in kept]
    ranges = {index: removal.ranges for index, removal in enumerate(removals) if removal is not None}
    return batch_without_ranges(attempt, frame, ranges)


def batch_without_ranges(
    attempt: AttemptReader, frame: StepFrame, ranges: Mapping[int, Sequence[tuple[int, int]]]
) -> pa.RecordBatch:
    """A frame's batch without token ranges, by number of the row in the frame."""
    if not ranges:
        return frame.batch
    secret, rows = attempt.run.secret(), attempt.rows(frame)
    return batch_of_rows(
        [without_tokens(secret, row, ranges[index]) if index in ranges else row for index, row in enumerate(rows)],
        attempt.info.format_version,
    )


def _remove_versions_below(attempt: AttemptReader, name: CompactionName) -> None:
    """Earlier versions go, Parquet first: without a manifest nobody would know what it was."""
    file_system, directory = attempt.run.file_system, attempt.directory
    there = set(file_system.names(directory))
    for version in range(name.version):
        old = dataclasses.replace(name, version=version)
        for part in (old.rows, old.frames, old.manifest):
            if part in there:
                file_system.remove(directory / part)
                file_system.sync_directory(directory)


def _remove_replaced(attempt: AttemptReader, files: Sequence[SegmentFile]) -> None:
    removed = False
    for file in files:
        path = attempt.directory / file.name.data
        if attempt.run.file_system.exists(path):
            attempt.run.file_system.remove(path)
            removed = True
    if removed:
        attempt.run.file_system.sync_directory(attempt.directory)
