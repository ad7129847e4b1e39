"""Rows of a query as a table, CSV, JSON, JSON lines or Parquet, batch by batch: memory does not grow with their number.

A table takes its widths from the first batch. On a terminal it is made to fit: wide cells are cut, and where there are too
many columns for that, each row is written as one line a column. Control characters never reach a terminal.
"""

import csv
import datetime
import decimal
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from rich.cells import cell_len, set_cell_size

from indexer.sql.statement import distinct_names
from ui.terminal.sql_format import SqlFormat
from ui.terminal.visible import safe

__all__ = ["write_rows"]

ROW_GROUP_ROWS = 131_072
MIN_WIDTH, GAP = 8, "  "


def write_rows(
    rows: pa.RecordBatchReader, sink: BinaryIO, form: SqlFormat, *, terminal_width: int | None = None
) -> int:
    """Write all rows; returns how many. terminal_width: columns of the terminal that `sink` is, None where it is none."""
    if form is SqlFormat.PARQUET:
        return _write_parquet(rows, sink)
    pieces = _table(rows, terminal_width) if form is SqlFormat.TABLE else _TEXTS[form](rows)
    num_rows = 0
    for num, text in pieces:
        num_rows += num
        sink.write((safe(text) if terminal_width else text).encode("utf-8", "replace"))
    return num_rows


def _write_parquet(rows: pa.RecordBatchReader, sink: BinaryIO) -> int:
    num_rows, waiting = 0, []
    with pq.ParquetWriter(sink, rows.schema, compression="zstd") as writer:
        for batch in rows:
            waiting.append(batch)
            num_rows += batch.num_rows
            if sum(item.num_rows for item in waiting) >= ROW_GROUP_ROWS:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.Table.from_batches(waiting))
    return num_rows


def _csv(rows: pa.RecordBatchReader) -> Iterator[tuple[int, str]]:
    """A header, then one line a row; nothing for NULL, lists and structs as JSON."""
    yield 0, _csv_lines([rows.schema.names])
    for batch in rows:
        yield batch.num_rows, _csv_lines(zip(*_texts(batch), strict=True))


def _csv_lines(lines: Any) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _json(rows: pa.RecordBatchReader) -> Iterator[tuple[int, str]]:
    """One list of objects."""
    before = "[\n"
    for num, line in ((1, line) for batch in rows for line in _objects(batch)):
        yield num, before + line
        before = ",\n"
    yield 0, "\n]\n" if before != "[\n" else "[]\n"


def _ndjson(rows: pa.RecordBatchReader) -> Iterator[tuple[int, str]]:
    """One object a line."""
    for batch in rows:
        yield batch.num_rows, "".join(f"{line}\n" for line in _objects(batch))


_TEXTS: dict[SqlFormat, Callable[[pa.RecordBatchReader], Iterator[tuple[int, str]]]] = {
    SqlFormat.CSV: _csv,
    SqlFormat.JSON: _json,
    SqlFormat.NDJSON: _ndjson,
}


def _objects(batch: pa.RecordBatch) -> Iterator[str]:
    names = distinct_names(batch.schema.names)
    columns = [[_plain(value) for value in column.to_pylist()] for column in batch.columns]
    for row in zip(*columns, strict=True):
        yield json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False)


def _plain(value: Any) -> Any:
    """The value as JSON has it: whole decimals are integers, bytes hex digits, times ISO 8601; no NaN or infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)


def _texts(batch: pa.RecordBatch) -> list[list[str]]:
    """Each column's cells as text."""
    return [[_text(value) for value in column.to_pylist()] for column in batch.columns]


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple | dict):
        return json.dumps(_plain(value), ensure_ascii=False)
    return value.hex() if isinstance(value, bytes) else str(value)


def _table(rows: pa.RecordBatchReader, terminal_width: int | None) -> Iterator[tuple[int, str]]:
    names = [_one_line(name) for name in rows.schema.names]
    right = [_is_number(field.type) for field in rows.schema]
    widths: list[int] | None = None
    for batch in rows:
        columns = [[_one_line(text) for text in texts] for texts in _texts(batch)]
        if widths is None:
            widths = _widths(names, columns, terminal_width)
            if widths:
                yield 0, _line(names, widths, [False] * len(names), cut=terminal_width is not None)
        lines = zip(*columns, strict=True)
        if widths:
            yield (
                batch.num_rows,
                "".join(_line(line, widths, right, cut=terminal_width is not None) for line in lines),
            )
        else:
            yield batch.num_rows, "".join(_record(names, line) for line in lines)
    if widths is None:
        yield 0, GAP.join(names) + "\n"


def _widths(names: Sequence[str], columns: Sequence[Sequence[str]], terminal_width: int | None) -> list[int]:
    """The width of each column; empty where so many do not fit."""
    wanted = [max(map(cell_len, [name, *cells])) for name, cells in zip(names, columns, strict=True)]
    if terminal_width is None:
        return wanted
    free = terminal_width - len(GAP) * (len(names) - 1)
    if sum(min(width, MIN_WIDTH) for width in wanted) > free:
        return []
    widths = list(wanted)
    while sum(widths) > free:
        widths[widths.index(max(widths))] -= 1
    return widths


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool], *, cut: bool) -> str:
    padded = []
    for cell, width, is_right in zip(cells, widths, right, strict=True):
        length = cell_len(cell)
        if cut and length > width:
            cell, length = set_cell_size(cell, width - 1) + "…", width
        space = " " * (width - length)
        padded.append(space + cell if is_right else cell + space)
    return GAP.join(padded).rstrip() + "\n"


def _record(names: Sequence[str], cells: Sequence[str]) -> str:
    return "".join(f"{name}: {cell}\n" for name, cell in zip(names, cells, strict=True)) + "\n"


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _one_line(text: str) -> str:
    if text.isprintable():
        return text
    line = safe(text).replace("\n", "⏎").replace("\t", " ")
    return "".join(character if character.isprintable() else "\ufffd" for character in line)
