"""Sealed or growing export → verified rows, by attempt and step range.

Only committed steps are read: those that every writer of the attempt has acknowledged. Every frame's bytes are checked
against their hash by the export reader before they are parsed. Rows come sorted by (global_step, dp_rank, microbatch,
slot), so that a range of steps is a contiguous range of rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from indexer.storage.step_range import StepRange
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.leaf import row_salt, tensors_commitment
from train_hooks.export_format.reading.reader import AttemptReader, RunReader, WriterLog
from train_hooks.export_format.records import AttemptInfo, SequenceAddress, StepRecord
from train_hooks.export_format.removal import ENCODING
from train_hooks.export_format.schema import as_current, tensor_of

__all__ = ["RangeData", "read_range", "record_table", "tensors_commitments", "tokens_of"]

_SORT = [("global_step", "ascending"), ("dp_rank", "ascending"), ("microbatch", "ascending"), ("slot", "ascending")]
RECORD_SCHEMA = pa.schema(
    [
        ("global_step", pa.int64()),
        ("dp_rank", pa.int32()),
        ("kind", pa.string()),
        ("unix_time_s", pa.float64()),
        ("name", pa.string()),
        ("value", pa.float64()),
        ("text", pa.string()),
    ]
)
STATUS_SCHEMA = pa.schema([("global_step", pa.int64()), ("status", pa.string())])


@dataclass(frozen=True, kw_only=True, slots=True)
class RangeData:
    """What the export holds of a step range: rows (sorted, with dp_rank), step records by name, statuses by step."""

    attempt: AttemptInfo
    steps: StepRange
    rows: pa.Table
    records: pa.Table
    statuses: pa.Table


def read_range(attempt: AttemptReader, writers: dict[int, WriterLog], steps: StepRange) -> RangeData:
    """Read a range of committed steps. Raises DamageError where a frame does not match its hash."""
    batches: list[pa.RecordBatch] = []
    records: list[tuple[int, StepRecord]] = []
    statuses: dict[int, str] = {}
    for dp_rank, writer in writers.items():
        for file, acks in writer.steps_between(steps.first_step, steps.last_step):
            for frame in attempt.frames_of(file, acks):
                records += [(dp_rank, record) for record in frame.records]
                if frame.ack.status is not None:
                    statuses.setdefault(frame.ack.global_step, frame.ack.status.value)
                if frame.batch.num_rows:
                    ranks = pa.array(np.full(frame.batch.num_rows, dp_rank, np.int32))
                    batch = as_current(frame.batch).replace_schema_metadata(None)
                    batches.append(batch.append_column("dp_rank", ranks))
    rows = pa.Table.from_batches(batches).sort_by(_SORT).combine_chunks() if batches else pa.table({})
    of_steps = pa.table({"global_step": list(statuses), "status": list(statuses.values())}, schema=STATUS_SCHEMA)
    return RangeData(
        attempt=attempt.info,
        steps=steps,
        rows=rows,
        records=record_table(records),
        statuses=of_steps.sort_by("global_step"),
    )


def record_table(records: Iterable[tuple[int, StepRecord]]) -> pa.Table:
    """One row for each number of each record, and one for each gap."""
    rows = [
        {
            "global_step": record.global_step, "dp_rank": dp_rank, "kind": record.kind,
            "unix_time_s": record.unix_time_s, "name": name, "value": value, "text": record.text,
        }
        for dp_rank, record in records
        for name, value in record.values.items()
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=RECORD_SCHEMA)


def tokens_of(rows: pa.Table, dtype: npt.DTypeLike) -> tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.int64]]:
    """All tokens of `rows`, one after the other, and the offset of each row's first token, [num_rows + 1]."""
    pieces: list[npt.NDArray[np.unsignedinteger]] = []
    lengths: list[npt.NDArray[np.int64]] = []
    little_endian = np.dtype(dtype).newbyteorder("<")
    for chunk in _chunks(rows.column("tokens")):
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        data = np.frombuffer(chunk.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
        pieces.append(data.view(little_endian))
        lengths.append(np.diff(offsets).astype(np.int64) // little_endian.itemsize)
    starts = np.zeros(rows.num_rows + 1, np.int64)
    np.cumsum(np.concatenate(lengths), out=starts[1:])
    return np.concatenate(pieces), starts


def tensors_commitments(rows: pa.Table, run: RunReader, attempt: AttemptInfo) -> pa.Array:
    """For each row what its leaf holds of labels, masks and positions: with it, tokens and segments alone can be
    checked.

    Nulls where the run's secret is not part of the export that we have, and of rows that tokens were taken out of.
    """
    try:
        secret = run.secret()
    except DamageError:
        return pa.nulls(rows.num_rows, pa.binary(32))
    commitments: list[bytes | None] = []
    columns = rows.select(["global_step", "dp_rank", "microbatch", "slot", "tensors"])
    for batch in columns.to_batches(max_chunksize=4096):
        for *place, items in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            step, dp_rank, microbatch, slot = place
            address = SequenceAddress(
                run_id=run.info.run_id, attempt=attempt.attempt, global_step=step, dp_rank=dp_rank,
                microbatch=microbatch, slot=slot,
            )  # fmt: skip
            tensors = [tensor_of(item) for item in items]
            gone = any(tensor.encoding == ENCODING for tensor in tensors)
            salt = row_salt(secret, str(address))
            commitments.append(None if gone else tensors_commitment(salt, tensors, attempt.format_version))
    return pa.array(commitments, pa.binary(32))


def _chunks(column: pa.ChunkedArray) -> Sequence[pa.BinaryArray]:
    return [chunk for chunk in column.chunks if len(chunk)]
