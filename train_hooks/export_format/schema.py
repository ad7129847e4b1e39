"""Rows and step records as Arrow: the schema of a segment file and of its record batches.

One record batch is one committed step of one writer. The step records (metrics, gaps, late losses) travel as JSON in
the batch's custom metadata under `kiseki.step_records`; numbers that JSON lacks are the strings "NaN", "Infinity",
"-Infinity". Attempts of formats 1 and 2 have fewer columns; `as_current` gives their batches the ones that they lack.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.paths import SegmentFileName
from train_hooks.export_format.records import (
    AttemptInfo,
    Evidence,
    Matched,
    Row,
    RowLoss,
    RunInfo,
    Segment,
    SequenceAddress,
    StepRecord,
    StepStatus,
    TensorRecord,
    in_32_bits,
)

__all__ = [
    "END_OF_STREAM",
    "ROW_FIELDS",
    "as_current",
    "batch_of_rows",
    "decode_frame",
    "decode_step_records",
    "encode_frame",
    "encode_step_records",
    "file_metadata",
    "row_fields",
    "row_schema",
    "rows_of_batch",
    "tensor_of",
]

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_RECORDS_KEY = b"kiseki.step_records"


def _field(name: str, kind: pa.DataType, *, null: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=null)


_OLD_SEGMENT = [
    _field("start", pa.int32()),
    _field("length", pa.int32()),
    _field("source", pa.string()),
    _field("document_id", pa.string()),
    _field("document_token_offset", pa.int64()),
]
_OLD_TENSOR = [
    _field("name", pa.string()),
    _field("dtype", pa.string()),
    _field("shape", pa.list_(pa.int32())),
    _field("encoding", pa.string()),
    _field("data", pa.binary()),
]
SEGMENT = pa.struct([*_OLD_SEGMENT, _field("loss", pa.float32(), null=True)])
TENSOR = pa.struct([*_OLD_TENSOR, _field("whole", pa.bool_()), _field("evidence", pa.string(), null=True)])


def _row_fields(segment: pa.DataType, tensor: pa.DataType, evidence: Sequence[pa.Field]) -> list[pa.Field]:
    return [
        _field("global_step", pa.int64()),
        _field("microbatch", pa.int32()),
        _field("slot", pa.int32()),
        _field("sample_index", pa.int64(), null=True),
        _field("status", pa.string()),
        _field("tokens", pa.binary()),
        _field("segments", pa.list_(segment)),
        _field("tensors", pa.list_(tensor)),
        _field("loss", pa.float32(), null=True),
        *evidence,
        _field("leaf", pa.binary(32)),
    ]


ROW_FIELDS = _row_fields(
    SEGMENT, TENSOR, [_field(name, pa.string(), null=True) for name in ("evidence", "matched", "relation")]
)
_OLD_ROW_FIELDS = _row_fields(pa.struct(_OLD_SEGMENT), pa.struct(_OLD_TENSOR), [])


_KINDS = {
    new: [(field.name, field.type, field.nullable) for field in fields]
    for new, fields in ((True, ROW_FIELDS), (False, _OLD_ROW_FIELDS))
}


def row_fields(format_version: int) -> list[pa.Field]:
    """The columns of attempts of a format."""
    return ROW_FIELDS if format_version >= 3 else _OLD_ROW_FIELDS


def row_schema(metadata: Mapping[str, str], format_version: int) -> pa.Schema:
    """Schema of a segment file whose identity `metadata` gives."""
    return pa.schema(row_fields(format_version), metadata={key: str(value) for key, value in metadata.items()})


def file_metadata(run: RunInfo, attempt: AttemptInfo, name: SegmentFileName) -> dict[str, str]:
    """Who a segment file is: the metadata of its schema."""
    return {
        "kiseki.format_version": str(attempt.format_version),
        "kiseki.run_id": run.run_id,
        "kiseki.attempt": str(attempt.attempt),
        "kiseki.dp_rank": str(name.dp_rank),
        "kiseki.file_number": str(name.number),
        "kiseki.sequence_length": str(run.sequence_length),
        "kiseki.token_dtype": run.token_dtype,
    }


def _columns(rows: Sequence[Row], format_version: int) -> dict[str, list[Any]]:
    new = format_version >= 3
    columns: dict[str, list[Any]] = {
        "global_step": [row.address.global_step for row in rows],
        "microbatch": [row.address.microbatch for row in rows],
        "slot": [row.address.slot for row in rows],
        "sample_index": [row.sample_index for row in rows],
        "status": [row.status.value for row in rows],
        "tokens": [row.tokens.astype(row.tokens.dtype.newbyteorder("<"), copy=False).tobytes() for row in rows],
        "segments": [[_segment_item(segment) for segment in row.segments] for row in rows],
        "tensors": [[_tensor_item(tensor, new=new) for tensor in row.tensors] for row in rows],
        "loss": [row.loss for row in rows],
        "leaf": [row.leaf for row in rows],
    }
    if new:
        columns["evidence"] = [row.evidence for row in rows]
        columns["matched"] = [row.matched for row in rows]
        columns["relation"] = [row.relation for row in rows]
    return columns


def _segment_item(segment: Segment) -> dict[str, object]:
    item: dict[str, object] = {
        "start": segment.start,
        "length": segment.length,
        "source": segment.source,
        "document_id": segment.document_id,
        "document_token_offset": segment.document_token_offset,
    }
    if segment.loss is not None:  # a key that is not there becomes null
        item["loss"] = segment.loss
    return item


def _tensor_item(tensor: TensorRecord, *, new: bool) -> dict[str, object]:
    item: dict[str, object] = {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": tensor.shape,
        "encoding": tensor.encoding,
        "data": tensor.data,
    }
    if new:
        item["whole"] = tensor.whole
        if tensor.evidence is not None:
            item["evidence"] = tensor.evidence
    return item


def _arrays(rows: Sequence[Row], format_version: int) -> list[pa.Array]:
    columns = _columns(rows, format_version)
    return [
        pa.array(values, kind)
        if not nullable or any(value is not None for value in values)
        else pa.nulls(len(rows), kind)
        for kind, nullable, values in (
            (kind, nullable, columns[name]) for name, kind, nullable in _KINDS[format_version >= 3]
        )
    ]


def _encode_number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def encode_step_records(records: Sequence[StepRecord]) -> str:
    """Step records as JSON."""
    return json.dumps([_step_record(record) for record in records], ensure_ascii=False)


def _step_record(record: StepRecord) -> dict[str, object]:
    found: dict[str, object] = {
        "global_step": record.global_step,
        "kind": record.kind,
        "unix_time_s": record.unix_time_s,
        "values": {name: _encode_number(value) for name, value in record.values.items()},
        "text": record.text,
    }
    if record.kind == "losses":
        found["rows"] = [
            [
                row.microbatch,
                row.slot,
                _loss(row.loss),
                None if row.segments is None else list(map(_loss, row.segments)),
            ]
            for row in record.rows
        ]
    return found


def _loss(value: float | None) -> float | str | None:
    rounded = in_32_bits(value)
    return None if rounded is None else _encode_number(rounded)


def decode_step_records(text: bytes | str) -> tuple[StepRecord, ...]:
    """Step records from JSON. Raises ValueError, KeyError or TypeError for other JSON."""
    return tuple(
        StepRecord(
            global_step=item["global_step"],
            kind=item["kind"],
            unix_time_s=item["unix_time_s"],
            values={name: float(value) for name, value in item["values"].items()},
            text=item["text"],
            rows=tuple(_row_loss(*row) for row in item.get("rows", ())),
        )
        for item in json.loads(text)
    )


def _row_loss(microbatch: int, slot: int, loss: float | str | None, segments: Iterable[Any] | None) -> RowLoss:
    def number(value: float | str | None) -> float | None:
        return None if value is None else float(value)

    of_segments = None if segments is None else tuple(number(value) for value in segments)
    return RowLoss(microbatch=microbatch, slot=slot, loss=number(loss), segments=of_segments)


def encode_frame(schema: pa.Schema, rows: Sequence[Row], records: str, format_version: int = 3) -> bytes:
    """One record batch message, as it follows the schema message in the stream. records: as JSON, '' for none."""
    batch = pa.RecordBatch.from_arrays(_arrays(rows, format_version), schema=schema)
    if not records:
        return bytes(batch.serialize())
    sink = pa.BufferOutputStream()
    head = len(schema.serialize())  # the stream begins with these very bytes, which the file already holds
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(batch, custom_metadata={_RECORDS_KEY: records})
        tail = sink.tell()
    return bytes(memoryview(sink.getvalue())[head:tail])


def decode_frame(schema_frame: bytes, frame: bytes, format_version: int) -> tuple[pa.RecordBatch, str]:
    """The batch of a frame whose hash the caller has checked, and its step records as JSON. Raises DamageError."""
    try:
        stream = pa.ipc.open_stream(pa.py_buffer(schema_frame + frame + END_OF_STREAM))
        batch, metadata = stream.read_next_batch_with_custom_metadata()
        batch.validate(full=True)
        if not batch.schema.equals(pa.schema(row_fields(format_version))):
            raise ValueError(f"its columns are {batch.schema.names}")
        records = bytes(metadata[_RECORDS_KEY]).decode("utf-8") if metadata and _RECORDS_KEY in metadata else ""
    except (pa.ArrowException, OSError, StopIteration, KeyError, TypeError, AttributeError, ValueError) as error:
        raise DamageError(f"a frame that matches its hash is no record batch: {error}") from error
    return batch, records


def batch_of_rows(rows: Sequence[Row], format_version: int) -> pa.RecordBatch:
    """The batch of some rows, as `rows_of_batch` takes it apart."""
    return pa.record_batch(_arrays(rows, format_version), schema=pa.schema(row_fields(format_version)))


def as_current(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch of any format with the columns of the current one; what an older format does not record is null."""
    if batch.schema.names == [field.name for field in ROW_FIELDS]:
        return batch
    arrays = {name: batch.column(name) for name in batch.schema.names}
    num_rows = batch.num_rows
    for name, kind in (("segments", SEGMENT), ("tensors", TENSOR)):
        lists = arrays[name]
        flat = lists.flatten()
        known = dict(zip([field.name for field in flat.type], flat.flatten(), strict=True))
        known.setdefault("whole", pa.array(np.zeros(len(flat), bool)))
        values = [known.get(field.name, pa.nulls(len(flat), field.type)) for field in kind]
        structs = pa.StructArray.from_arrays(values, fields=list(kind))
        offsets = pa.array(lists.offsets.to_numpy() - lists.offsets[0].as_py(), pa.int32())
        arrays[name] = pa.ListArray.from_arrays(offsets, structs, type=pa.list_(kind))
    columns = [arrays.get(field.name, pa.nulls(num_rows, field.type)) for field in ROW_FIELDS]
    return pa.record_batch(columns, schema=pa.schema(ROW_FIELDS))


def rows_of_batch(batch: pa.RecordBatch, run: RunInfo, attempt: AttemptInfo, dp_rank: int) -> list[Row]:
    """The rows of a batch as records; tokens are read-only views. Raises DamageError for an unknown word."""
    dtype = np.dtype(run.token_dtype).newbyteorder("<")
    try:
        return [_row(item, attempt, dp_rank, dtype) for item in batch.to_pylist()]
    except (ValueError, TypeError) as error:
        raise DamageError(f"a row that matches its hash is none of this format: {error}") from error


def _row(item: dict[str, Any], attempt: AttemptInfo, dp_rank: int, dtype: np.dtype[Any]) -> Row:
    evidence, matched = item.get("evidence"), item.get("matched")
    return Row(
        address=SequenceAddress(
            run_id=attempt.run_id, attempt=attempt.attempt, global_step=item["global_step"], dp_rank=dp_rank,
            microbatch=item["microbatch"], slot=item["slot"],
        ),
        tokens=np.frombuffer(item["tokens"], dtype),
        segments=tuple(Segment(**segment) for segment in item["segments"]),
        tensors=tuple(map(tensor_of, item["tensors"])),
        sample_index=item["sample_index"],
        status=StepStatus(item["status"]),
        loss=item["loss"],
        leaf=item["leaf"],
        evidence=None if evidence is None else Evidence(evidence),
        matched=None if matched is None else Matched(matched),
        relation=item.get("relation"),
        format_version=attempt.format_version,
    )  # fmt: skip


def tensor_of(item: Mapping[str, Any]) -> TensorRecord:
    """The record of one item of the column `tensors`."""
    evidence = item.get("evidence")
    return TensorRecord(
        name=item["name"], dtype=item["dtype"], shape=tuple(item["shape"]), encoding=item["encoding"],
        data=item["data"], whole=item.get("whole", False), evidence=None if evidence is None else Evidence(evidence),
    )  # fmt: skip
