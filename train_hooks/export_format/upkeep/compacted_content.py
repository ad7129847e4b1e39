"""The content of a compaction: the rows of a range of segment files as one Parquet file, and where each frame is in it."""

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from train_hooks.export_format.acknowledgement import Ack, AckKind
from train_hooks.export_format.reading.chain import SegmentFile
from train_hooks.export_format.reading.compacted import HashedRange
from train_hooks.export_format.reading.reader import AttemptReader, StepFrame
from train_hooks.export_format.schema import row_fields

__all__ = ["CompactedContent", "RowChange", "frames_in", "one_range"]

RowChange: TypeAlias = Callable[[StepFrame], pa.RecordBatch]
"""The rows of a frame as they are to be kept."""
_PLACE_FIELDS = [pa.field("attempt", pa.int32(), nullable=False), pa.field("dp_rank", pa.int32(), nullable=False)]
_FRAME_FIELDS = [
    pa.field("file_number", pa.int32(), nullable=False),
    pa.field("frame_number", pa.int64(), nullable=False),
    pa.field("row_group", pa.int32(), nullable=False),
    pa.field("first_row", pa.int32(), nullable=False),
    pa.field("num_rows", pa.int32(), nullable=False),
    pa.field("step_records", pa.string()),
]


class CompactedContent:
    """The two Parquet files of a range of segment files, in memory, and the hashed ranges of the first."""

    def __init__(
        self, attempt: AttemptReader, files: Sequence[SegmentFile], row_group_bytes: int, level: int,
        change: RowChange | None,
    ) -> None:  # fmt: skip
        self._constants = (attempt.info.attempt, files[0].name.dp_rank)
        self._sink = io.BytesIO()
        self._group_ends = [0]
        self._table: list[tuple[int, int, int, int, int, str | None]] = []
        schema = pa.schema([*_PLACE_FIELDS, *row_fields(attempt.info.format_version)])
        with pq.ParquetWriter(
            self._sink,
            schema,
            compression="zstd",
            compression_level=level,
            use_dictionary=["attempt", "dp_rank", "global_step", "microbatch", "status"],
            write_page_checksum=True,
            write_statistics=["global_step", "microbatch", "slot"],
        ) as writer:
            pending: list[StepFrame] = []
            for file, ack in frames_in(files):
                frame = attempt.frame(file, ack)
                if change is not None:
                    frame = dataclasses.replace(frame, batch=change(frame))
                self._add_to_table(file, frame, sum(item.batch.num_rows for item in pending))
                if frame.batch.num_rows:
                    pending.append(frame)
                if sum(item.batch.nbytes for item in pending) >= row_group_bytes:
                    self._flush(writer, schema, pending)
            self._flush(writer, schema, pending)
        self.rows = self._sink.getvalue()
        self.pieces = self._pieces()
        self.frames = self._frame_file(level)

    def _add_to_table(self, file: SegmentFile, frame: StepFrame, first_row: int) -> None:
        text = frame.records_json or None
        group = len(self._group_ends) - 1
        place = (file.name.number, frame.ack.number, group, first_row, frame.batch.num_rows, text)
        self._table.append(place)

    def _flush(self, writer: pq.ParquetWriter, schema: pa.Schema, pending: list[StepFrame]) -> None:
        if not pending:
            return
        rows = pa.Table.from_batches([frame.batch.replace_schema_metadata(None) for frame in pending])
        constants = [pa.array([value] * rows.num_rows, pa.int32()) for value in self._constants]
        table = pa.Table.from_arrays([*constants, *rows.columns], schema=schema)
        writer.write_table(table, row_group_size=max(1, table.num_rows))
        self._group_ends.append(self._sink.tell())
        pending.clear()

    def _pieces(self) -> tuple[HashedRange, ...]:
        ends = [*self._group_ends[1:], len(self.rows)]
        starts = [0, *ends[:-1]]
        view = memoryview(self.rows)
        return tuple(
            HashedRange(start=start, end=end, sha256=hashlib.sha256(view[start:end]).hexdigest())
            for start, end in zip(starts, ends, strict=True)
        )

    def _frame_file(self, level: int) -> bytes:
        columns = list(zip(*self._table, strict=True)) or [() for _ in _FRAME_FIELDS]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, _FRAME_FIELDS, strict=True)]
        sink = io.BytesIO()
        pq.write_table(
            pa.Table.from_arrays(arrays, schema=pa.schema(_FRAME_FIELDS)),
            sink,
            compression="zstd",
            compression_level=level,
            write_page_checksum=True,
        )
        return sink.getvalue()


def frames_in(files: Sequence[SegmentFile]) -> Iterator[tuple[SegmentFile, Ack]]:
    """The frames of sealed files that hold rows or step records, each with its file."""
    for file in files:
        for ack in file.acks:
            if ack.kind in (AckKind.STEP, AckKind.NOTE):
                yield file, ack


def one_range(data: bytes) -> tuple[HashedRange, ...]:
    """All of a file as one hashed range."""
    return (HashedRange(start=0, end=len(data), sha256=hashlib.sha256(data).hexdigest()),)
