"""Verification of one segment file: every byte against its hashes, every row against its leaf and its step's root."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from train_hooks.export_format.acknowledgement import Ack, AckKind
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.leaf import merkle_root
from train_hooks.export_format.reading.chain import SegmentFile
from train_hooks.export_format.reading.reader import AttemptReader
from train_hooks.export_format.reading.summaries import EvidenceShares
from train_hooks.export_format.record_commitment import count_evidence, record_commitment
from train_hooks.export_format.records import Row, RowLoss, StepRecord, StepStatus
from train_hooks.export_format.removal import leaf_of_row, removal_of
from train_hooks.export_format.schema import (
    END_OF_STREAM,
    decode_frame,
    decode_step_records,
    file_metadata,
    row_schema,
    rows_of_batch,
)

__all__ = ["FileContent", "StepContent", "check_content", "late_loss_faults"]

_BLOCK_BYTES = 8 << 20
Complain = Callable[[Path, str, int | None], None]
Progress = Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepContent:
    """What one writer holds of one step."""

    num_rows: int
    num_microbatches: int
    status: StepStatus | None
    gap: str | None


@dataclass(kw_only=True, slots=True)
class FileContent:
    """What a segment file holds, counted while it was checked. `data_sha256` is of its acknowledged bytes.

    num_removed: rows that have lost tokens to a takedown. late_losses: step and loss of each row that got its loss later.
    """

    steps: list[tuple[int, StepContent]] = field(default_factory=list)
    num_rows: int = 0
    num_tokens: int = 0
    num_removed: int = 0
    late_losses: list[tuple[int, RowLoss]] = field(default_factory=list)
    shares: EvidenceShares = field(default_factory=EvidenceShares)
    data_sha256: str | None = None


def check_content(
    attempt: AttemptReader, file: SegmentFile, secret: bytes | None, complain: Complain, progress: Progress
) -> FileContent:
    """Check all acknowledged frames of a file; what does not hold goes to `complain`, bytes read go to `progress`."""
    content = FileContent()
    path = _data_path(attempt, file)
    if path is None:
        if file.compacted is not None:
            _check_compacted(attempt, file, secret, content, complain)
        elif len(file.acks):
            complain(file.data_path, "is missing; restore it from a copy of the export", None)
        return content
    digest = hashlib.sha256()
    schema_frame = b""
    for ack, frame in _frames(attempt, file, path, progress):
        digest.update(frame)
        if hashlib.sha256(frame).digest() != ack.frame_sha256 or len(frame) != ack.end - ack.start:
            complain(path, f"bytes {ack.start}–{ack.end} do not match their hash; restore it from a copy", _step(ack))
            continue
        try:
            if ack.kind is AckKind.SCHEMA:
                schema_frame = bytes(frame)
                _check_schema(attempt, file, schema_frame)
            elif ack.kind is AckKind.END:
                _expect(bytes(frame) == END_OF_STREAM, "its end frame is no end of stream")
            else:
                decoded = decode_frame(schema_frame, bytes(frame), attempt.info.format_version)
                _check_frame(attempt, file, ack, decoded, secret, content)
        except DamageError as error:
            complain(path, f"{error}; its writer or its memory was at fault: restore it from a copy", _step(ack))
    content.data_sha256 = digest.hexdigest()
    return content


def _data_path(attempt: AttemptReader, file: SegmentFile) -> Path | None:
    for path in (file.data_path, attempt.directory / file.name.data):
        if attempt.run.file_system.exists(path):
            return path
    return None


def _frames(
    attempt: AttemptReader, file: SegmentFile, path: Path, progress: Progress
) -> Iterator[tuple[Ack, memoryview]]:
    """Each acknowledged frame and its bytes, read in large blocks."""
    acks: Sequence[Ack] = list(file.acks)
    start = 0
    while start < len(acks):
        end = start + 1
        while end < len(acks) and acks[end].end - acks[start].start <= _BLOCK_BYTES:
            end += 1
        offset = acks[start].start
        try:
            block = memoryview(attempt.run.file_system.read(path, offset, acks[end - 1].end))
        except FileNotFoundError:  # it was sealed since it was looked for
            path = attempt.directory / file.name.data
            block = memoryview(attempt.run.file_system.read(path, offset, acks[end - 1].end))
        progress(len(block))
        for ack in acks[start:end]:
            yield ack, block[ack.start - offset : ack.end - offset]
        start = end


def _check_schema(attempt: AttemptReader, file: SegmentFile, frame: bytes) -> None:
    expected = row_schema(file_metadata(attempt.run.info, attempt.info, file.name), attempt.info.format_version)
    try:
        found = pa.ipc.read_schema(pa.py_buffer(frame))
    except (pa.ArrowException, OSError) as error:
        raise DamageError(f"its schema cannot be read: {error}") from error
    _expect(found.equals(expected, check_metadata=True), "its schema is another file's")


def _check_compacted(
    attempt: AttemptReader, file: SegmentFile, secret: bytes | None, content: FileContent, complain: Complain
) -> None:
    compacted = file.compacted
    if compacted is None:
        return
    path = compacted.path
    try:
        frames = [ack for ack in file.acks if ack.kind in (AckKind.STEP, AckKind.NOTE)]
        found = compacted.num_frames(file.name.number)
        _expect(found == len(frames), f"expected {len(frames)} frames of file {file.name.number}, found {found}")
    except DamageError as error:
        complain(path, str(error), None)
        return
    for ack in frames:
        try:
            decoded = compacted.frame(file.name.number, ack, attempt.info.format_version)
            _check_frame(attempt, file, ack, decoded, secret, content)
        except DamageError as error:
            complain(path, f"{error}; restore it from a copy of the export", _step(ack))


def _check_frame(
    attempt: AttemptReader,
    file: SegmentFile,
    ack: Ack,
    decoded: tuple[pa.RecordBatch, str],
    secret: bytes | None,
    content: FileContent,
) -> None:
    batch, records_json = decoded
    _expect(batch.num_rows == ack.num_rows, f"expected {ack.num_rows} rows, found {batch.num_rows}")
    rows = rows_of_batch(batch, attempt.run.info, attempt.info, file.name.dp_rank)
    records = _step_records(records_json)
    if attempt.info.format_version >= 3:
        _check_commitment(attempt, file, ack, rows, records, records_json, secret)
    late = [(record.global_step, loss) for record in records for loss in record.rows]
    if ack.kind is AckKind.NOTE:
        _expect(not ack.num_rows, "step records alone hold rows")
        _expect(all(step <= ack.global_step for step, _ in late), "it has losses of a step that is written later")
        content.late_losses += late
        return
    _expect(not late, "losses that came late are with the rows of a step")
    gaps = [record.text or "rows were not exported" for record in records if record.kind == "gap"]
    num_microbatches = rows[-1].address.microbatch + 1 if rows else 0
    step = StepContent(
        num_rows=len(rows), num_microbatches=num_microbatches, status=ack.status, gap=gaps[0] if gaps else None
    )
    content.steps.append((ack.global_step, step))
    content.num_rows += len(rows)
    content.shares = content.shares.plus(len(rows), ack.evidence, ack.matched)
    content.num_tokens += sum(len(row.tokens) for row in rows)
    content.num_removed += sum(removal_of(row) is not None for row in rows)
    _check_addresses(ack, rows)
    for row in rows:
        _check_row(attempt, row, secret)
    found, expected = sum(len(row.tokens) for row in rows), ack.tokens_in(attempt.run.info)
    _expect(found == expected, f"expected {expected} tokens, found {found}")
    _expect(merkle_root([row.leaf for row in rows]) == ack.root, "its leaves do not give the step's root hash")


def late_loss_faults(rows: Sequence[Row], losses: Sequence[RowLoss]) -> Iterator[str]:
    """What is wrong with losses that came after the step of these rows was written."""
    of_place = {(row.address.microbatch, row.address.slot): row for row in rows}
    given: set[tuple[str, int, int]] = set()
    for loss in losses:
        place = (loss.microbatch, loss.slot)
        row, name = of_place.get(place), f"of micro-batch {loss.microbatch}, slot {loss.slot}"
        if row is None:
            yield f"{name} has no row"
            continue
        for kind, late, own in (
            ("row", loss.loss is not None, row.loss is not None),
            ("segments", loss.segments is not None, any(segment.loss is not None for segment in row.segments)),
        ):
            if late and (own or (kind, *place) in given):
                yield f"{name} is of a row that has one"
            given |= {(kind, *place)} if late else set()
        if loss.segments is not None and len(loss.segments) != len(row.segments):
            yield f"{name} is of {len(loss.segments)} segments, the row has {len(row.segments)}"


def _step_records(text: str) -> tuple[StepRecord, ...]:
    try:
        return decode_step_records(text) if text else ()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamageError(f"its step records are none: {error}") from error


def _check_commitment(
    attempt: AttemptReader,
    file: SegmentFile,
    ack: Ack,
    rows: Sequence[Row],
    records: Sequence[StepRecord],
    records_json: str,
    secret: bytes | None,
) -> None:
    """Status, losses, evidence and step records are those that were acknowledged, in a compacted file too."""
    _expect(count_evidence(rows, attempt.info) == (ack.evidence, ack.matched), "its evidence is not as acknowledged")
    kinds = {record.kind for record in records}
    _expect((ack.has_gap, ack.has_losses) == ("gap" in kinds, "losses" in kinds), "its step records are of other kinds")
    if secret is None:
        return
    found = record_commitment(
        secret, attempt.info, file.name.dp_rank, ack.kind, ack.global_step, ack.status, rows, records_json
    )
    _expect(found == ack.record, "its status, losses, evidence or step records are not those that were acknowledged")


def _check_addresses(ack: Ack, rows: Sequence[Row]) -> None:
    """Every micro-batch and slot once, in order: (0, 0), (0, 1) … (1, 0) …"""
    expected = (0, 0)
    for row in rows:
        address = row.address
        found = (address.microbatch, address.slot)
        if found not in (expected, (expected[0] + 1, 0)) or (found != expected and expected == (0, 0)):
            raise DamageError(f"expected micro-batch and slot {expected}, found {found}")
        if address.global_step != ack.global_step or row.status is not ack.status:
            raise DamageError(f"row {address} belongs to another step or status than its acknowledgement says")
        expected = (found[0], found[1] + 1)


def _check_row(attempt: AttemptReader, row: Row, secret: bytes | None) -> None:
    info = attempt.run.info
    if not info.accepts_length(len(row.tokens)) or int(row.tokens.max(initial=0)) >= info.vocab_size:
        raise DamageError(f"row {row.address} has other tokens than the run can hold")
    if row.relation == "" or (row.sample_index is not None and row.sample_index < 0):
        raise DamageError(f"row {row.address} has an empty relation or a negative sample index")
    position = 0
    for segment in row.segments:
        if segment.start < position or segment.length < 1 or segment.start + segment.length > len(row.tokens):
            raise DamageError(f"row {row.address} has segments that overlap, are empty or reach beyond it")
        position = segment.start + segment.length
    if row.address.slot and any(tensor.whole for tensor in row.tensors):
        raise DamageError(f"row {row.address} holds a tensor of the whole micro-batch, which belongs to slot 0")
    if secret is not None and leaf_of_row(secret, row) != row.leaf:
        raise DamageError(f"row {row.address} does not match its leaf")


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise DamageError(message)


def _step(ack: Ack) -> int | None:
    return ack.global_step if ack.kind in (AckKind.STEP, AckKind.NOTE) else None
