"""Frames of a segment file: rows and step records come back, and each frame is a message of one Arrow stream."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.support.example_exports import LENGTH, begin_attempt, begin_run, committed_step, write_export
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.paths import SegmentFileName
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import AttemptInfo, Row, RowLoss, RunInfo, StepRecord
from train_hooks.export_format.schema import (
    END_OF_STREAM,
    decode_frame,
    decode_step_records,
    encode_frame,
    encode_step_records,
    file_metadata,
    row_schema,
    rows_of_batch,
)
from train_hooks.hook.export.row_builder import RowBuilder


@pytest.fixture
def run(tmp_path: Path) -> RunInfo:
    return begin_run(tmp_path)


@pytest.fixture
def attempt(run: RunInfo, tmp_path: Path) -> AttemptInfo:
    return begin_attempt(tmp_path, run)


@pytest.fixture
def rows(run: RunInfo, attempt: AttemptInfo, tmp_path: Path) -> tuple[Row, ...]:
    return RowBuilder(run, attempt, 0, RunReader(tmp_path).secret()).frame(committed_step(3, 0)).rows


@pytest.fixture
def schema(run: RunInfo, attempt: AttemptInfo) -> pa.Schema:
    return row_schema(file_metadata(run, attempt, SegmentFileName(dp_rank=0, number=0)), 3)


RECORDS = (
    StepRecord(global_step=3, kind="metrics", unix_time_s=1.25, values={"loss": math.inf, "x": -math.inf, "n": 1.0}),
    StepRecord(
        global_step=2, kind="losses", unix_time_s=1.5,
        rows=(
            RowLoss(microbatch=0, slot=1, loss=0.1015625, segments=(math.inf, None)),
            RowLoss(microbatch=1, slot=0, loss=None),
        ),
    ),
    StepRecord(global_step=3, kind="gap", unix_time_s=2.0, values={"num_rows": 8}, text="der Grund: „voll“"),
)  # fmt: skip


def same(one: Row, other: Row) -> bool:
    return one.tokens.tolist() == other.tokens.tolist() and all(
        getattr(one, name) == getattr(other, name) for name in Row.__slots__ if name != "tokens"
    )


def test_rows_and_records_come_back(
    run: RunInfo, attempt: AttemptInfo, schema: pa.Schema, rows: tuple[Row, ...]
) -> None:
    frame = encode_frame(schema, rows, encode_step_records(RECORDS))
    batch, records = decode_frame(schema.serialize().to_pybytes(), frame, 3)
    back = rows_of_batch(batch, run, attempt, 0)

    assert decode_step_records(records) == RECORDS
    assert records == encode_step_records(RECORDS)
    assert len(back) == len(rows) == 4
    assert all(same(one, other) for one, other in zip(rows, back, strict=True))
    assert not back[0].tokens.flags.writeable


def test_late_losses_are_kept_in_32_bits() -> None:
    loss = RowLoss(microbatch=0, slot=0, loss=0.1, segments=(math.nan, 1e300))
    (back,) = decode_step_records(
        encode_step_records([StepRecord(global_step=1, kind="losses", unix_time_s=0.0, rows=(loss,))])
    )

    assert back.rows[0].loss == float(np.float32(0.1)) != 0.1
    assert back.rows[0].segments is not None
    assert math.isnan(back.rows[0].segments[0] or 0)
    assert back.rows[0].segments[1] == math.inf


def test_a_record_of_losses_always_has_its_rows() -> None:
    assert '"rows": []' in encode_step_records([StepRecord(global_step=1, kind="losses", unix_time_s=0.0)])
    assert '"rows"' not in encode_step_records([StepRecord(global_step=1, kind="metrics", unix_time_s=0.0)])


def test_nan_metrics_come_back(schema: pa.Schema) -> None:
    record = StepRecord(global_step=1, kind="metrics", unix_time_s=0.0, values={"loss": math.nan})
    frame = encode_frame(schema, (), encode_step_records([record]))
    batch, records = decode_frame(schema.serialize().to_pybytes(), frame, 3)

    assert batch.num_rows == 0
    assert math.isnan(decode_step_records(records)[0].values["loss"])


def test_frames_in_a_row_are_one_arrow_stream(schema: pa.Schema, rows: tuple[Row, ...]) -> None:
    records = encode_step_records(RECORDS)
    frames = [encode_frame(schema, rows, ""), encode_frame(schema, (), ""), encode_frame(schema, rows[:1], records)]
    stream = schema.serialize().to_pybytes() + b"".join(frames) + END_OF_STREAM

    table = pa.ipc.open_stream(stream).read_all()
    assert table.num_rows == 5
    assert table.schema.metadata[b"kiseki.sequence_length"] == str(LENGTH).encode()


def test_a_segment_file_is_an_arrow_stream(tmp_path: Path) -> None:
    write_export(tmp_path / "run")
    files = sorted((tmp_path / "run" / "export" / "attempts").rglob("*.arrows"))

    assert len(files) > 4
    for path in files:
        with path.open("rb") as file:
            assert pa.ipc.open_stream(file).read_all().schema.names[0] == "global_step"


@pytest.mark.parametrize("frame", [b"", b"\xff" * 40, END_OF_STREAM])
def test_a_frame_that_is_none_is_damage(schema: pa.Schema, frame: bytes) -> None:
    with pytest.raises(DamageError):
        decode_frame(schema.serialize().to_pybytes(), frame, 3)


def test_a_frame_of_other_columns_is_damage() -> None:
    schema = pa.schema([pa.field("x", pa.int64())])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.record_batch([pa.array([1])], schema=schema))
    head = len(schema.serialize())

    with pytest.raises(DamageError, match="its columns are"):
        decode_frame(schema.serialize().to_pybytes(), sink.getvalue().to_pybytes()[head:-8], 3)
