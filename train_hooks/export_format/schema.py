"""Rows and step records as Arrow: the schema of a segment file and of its record batches.

One record batch is one committed step of one writer. The step records (metrics, gaps) travel as JSON in the batch's
custom metadata under `kiseki.step_records`; numbers that JSON lacks are the strings "NaN", "Infinity", "-Infinity".
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.paths import SegmentFileName
from train_hooks.export_format.records import (
    Row,
    RunInfo,
    Segment,
    SequenceAddress,
    StepRecord,
    StepStatus,
    TensorRecord,
)

__all__ = [
    "END_OF_STREAM",
    "ROW_FIELDS",
    "batch_of_rows",
    "decode_frame",
    "decode_step_records",
    "encode_frame",
    "encode_step_records",
    "file_metadata",
    "row_schema",
    "rows_of_batch",
]

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_RECORDS_KEY = b"kiseki.step_records"

SEGMENT = pa.struct(
    [
        pa.field("start", pa.int32(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("document_token_offset", pa.int64(), nullable=False),
    ]
)
TENSOR = pa.struct(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int32()), nullable=False),
        pa.field("encoding", pa.string(), nullable=False),
        pa.field("data", pa.binary(), nullable=False),
    ]
)
ROW_FIELDS = [
    pa.field("global_step", pa.int64(), nullable=False),
    pa.field("microbatch", pa.int32(), nullable=False),
    pa.field("slot", pa.int32(), nullable=False),
    pa.field("sample_index", pa.int64()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("tokens", pa.binary(), nullable=False),
    pa.field("segments", pa.list_(SEGMENT), nullable=False),
    pa.field("tensors", pa.list_(TENSOR), nullable=False),
    pa.field("loss", pa.float32()),
    pa.field("leaf", pa.binary(32), nullable=False),
]


def row_schema(metadata: Mapping[str, str]) -> pa.Schema:
    """Schema of a segment file whose identity `metadata` gives."""
    return pa.schema(ROW_FIELDS, metadata={key: str(value) for key, value in metadata.items()})


def file_metadata(run: RunInfo, attempt: int, name: SegmentFileName) -> dict[str, str]:
    """Who a segment file is: the metadata of its schema."""
    return {
        "kiseki.format_version": str(run.format_version),
        "kiseki.run_id": run.run_id,
        "kiseki.attempt": str(attempt),
        "kiseki.dp_rank": str(name.dp_rank),
        "kiseki.file_number": str(name.number),
        "kiseki.sequence_length": str(run.sequence_length),
        "kiseki.token_dtype": run.token_dtype,
    }


def _columns(rows: Sequence[Row]) -> dict[str, list[object]]:
    return {
        "global_step": [row.address.global_step for row in rows],
        "microbatch": [row.address.microbatch for row in rows],
        "slot": [row.address.slot for row in rows],
        "sample_index": [row.sample_index for row in rows],
        "status": [row.status.value for row in rows],
        "tokens": [row.tokens.astype(row.tokens.dtype.newbyteorder("<"), copy=False).tobytes() for row in rows],
        "segments": [
            [
                {
                    "start": segment.start,
                    "length": segment.length,
                    "source": segment.source,
                    "document_id": segment.document_id,
                    "document_token_offset": segment.document_token_offset,
                }
                for segment in row.segments
            ]
            for row in rows
        ],
        "tensors": [
            [
                {
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": list(tensor.shape),
                    "encoding": tensor.encoding,
                    "data": tensor.data,
                }
                for tensor in row.tensors
            ]
            for row in rows
        ],
        "loss": [row.loss for row in rows],
        "leaf": [row.leaf for row in rows],
    }


def _encode_number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def encode_step_records(records: Sequence[StepRecord]) -> str:
    """Step records as JSON."""
    return json.dumps(
        [
            {
                "global_step": record.global_step,
                "kind": record.kind,
                "unix_time_s": record.unix_time_s,
                "values": {name: _encode_number(value) for name, value in record.values.items()},
                "text": record.text,
            }
            for record in records
        ],
        ensure_ascii=False,
    )


def decode_step_records(text: bytes | str) -> tuple[StepRecord, ...]:
    """Step records from JSON. Raises ValueError, KeyError or TypeError for other JSON."""
    return tuple(
        StepRecord(
            global_step=item["global_step"],
            kind=item["kind"],
            unix_time_s=item["unix_time_s"],
            values={name: float(value) for name, value in item["values"].items()},
            text=item["text"],
        )
        for item in json.loads(text)
    )


def encode_frame(schema: pa.Schema, rows: Sequence[Row], records: Sequence[StepRecord]) -> bytes:
    """One record batch message, as it stands in the stream after the schema message."""
    columns = _columns(rows)
    arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
    batch = pa.record_batch(arrays, schema=schema)
    sink = pa.BufferOutputStream()
    head = len(schema.serialize())  # the stream begins with these very bytes, which the file already holds
    with pa.ipc.new_stream(sink, schema) as stream:
        metadata = {_RECORDS_KEY: encode_step_records(records)} if records else None
        stream.write_batch(batch, custom_metadata=metadata)
        tail = sink.tell()
    return bytes(memoryview(sink.getvalue())[head:tail])


def decode_frame(schema_frame: bytes, frame: bytes) -> tuple[pa.RecordBatch, tuple[StepRecord, ...]]:
    """The batch and step records of a frame whose hash the caller has checked. Raises DamageError."""
    try:
        stream = pa.ipc.open_stream(pa.py_buffer(schema_frame + frame + END_OF_STREAM))
        batch, metadata = stream.read_next_batch_with_custom_metadata()
        batch.validate(full=True)
        if not batch.schema.equals(pa.schema(ROW_FIELDS)):
            raise ValueError(f"its columns are {batch.schema.names}")
        records = decode_step_records(metadata[_RECORDS_KEY]) if metadata and _RECORDS_KEY in metadata else ()
    except (pa.ArrowException, OSError, StopIteration, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamageError(f"a frame that matches its hash is no record batch: {error}") from error
    return batch, records


def batch_of_rows(rows: Sequence[Row]) -> pa.RecordBatch:
    """The batch of some rows, as `rows_of_batch` takes it apart."""
    columns = _columns(rows)
    return pa.record_batch(
        [pa.array(columns[field.name], type=field.type) for field in ROW_FIELDS], schema=pa.schema(ROW_FIELDS)
    )


def rows_of_batch(batch: pa.RecordBatch, run_id: str, attempt: int, dp_rank: int, token_dtype: str) -> list[Row]:
    """The rows of a batch as records; tokens are read-only views. Raises DamageError for an unknown status."""
    dtype = np.dtype(token_dtype).newbyteorder("<")
    try:
        return [_row(item, run_id, attempt, dp_rank, dtype) for item in batch.to_pylist()]
    except (ValueError, TypeError) as error:
        raise DamageError(f"a row that matches its hash is none of this format: {error}") from error


def _row(item: dict[str, Any], run_id: str, attempt: int, dp_rank: int, dtype: np.dtype[Any]) -> Row:
    return Row(
        address=SequenceAddress(
            run_id=run_id, attempt=attempt, global_step=item["global_step"], dp_rank=dp_rank,
            microbatch=item["microbatch"], slot=item["slot"],
        ),
        tokens=np.frombuffer(item["tokens"], dtype),
        segments=tuple(Segment(**segment) for segment in item["segments"]),
        tensors=tuple(
            TensorRecord(
                name=tensor["name"], dtype=tensor["dtype"], shape=tuple(tensor["shape"]),
                encoding=tensor["encoding"], data=tensor["data"],
            )
            for tensor in item["tensors"]
        ),
        sample_index=item["sample_index"],
        status=StepStatus(item["status"]),
        loss=item["loss"],
        leaf=item["leaf"],
    )  # fmt: skip
