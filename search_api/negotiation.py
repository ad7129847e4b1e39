"""In which form an answer goes back: JSON, NDJSON, CSV, Parquet or an Arrow stream, from one list of rows.

JSON holds the rows and, beside them, what every answer says of itself (`schemas.Envelope`). The other forms hold rows alone;
there the same stands in headers: `Kiseki-Generation`, `Kiseki-Truncated`, … and `Kiseki-Next-Cursor`. Nested values are
JSON text in CSV. Cells of CSV are as they are in the data: a spreadsheet may take one for a formula.
"""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import Request, Response

from search_api.problems import Problem

__all__ = [
    "ARROW",
    "CSV",
    "JSON",
    "NDJSON",
    "PARQUET",
    "ROW_FORMATS",
    "Rows",
    "choose_media_type",
    "etag_of",
    "json_bytes",
    "unchanged",
]

JSON, NDJSON, CSV = "application/json", "application/x-ndjson", "text/csv"
PARQUET, ARROW = "application/vnd.apache.parquet", "application/vnd.apache.arrow.stream"
ROW_FORMATS = (JSON, NDJSON, CSV, PARQUET, ARROW)
_MAX_ACCEPT = 1000

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows of an answer. `name` is their field in JSON, `schema` their columns; `more` are further fields of the JSON.

    table: the same rows, where they come from one.
    """

    name: str
    rows: Sequence[Row]
    schema: pa.Schema
    table: pa.Table | None = None
    next_cursor: str | None = None
    more: Row = field(default_factory=dict)

    def encode(self, media_type: str, envelope: Row) -> Response:
        """The response in one of ROW_FORMATS."""
        if media_type == JSON:
            body = {**envelope, **self.more, self.name: self.rows, "next_cursor": self.next_cursor}
            return Response(json_bytes(body), media_type=JSON)
        headers = {_header(name): _value(value) for name, value in envelope.items() if name != "failures"}
        if self.next_cursor is not None:
            headers["Kiseki-Next-Cursor"] = self.next_cursor
        return Response(self._table_bytes(media_type), media_type=media_type, headers=headers)

    def _table_bytes(self, media_type: str) -> bytes:
        if media_type == NDJSON:
            return b"".join(json_bytes(row) + b"\n" for row in self.rows)
        if media_type == CSV:
            return _csv(self.rows, self.schema.names)
        table = self.table
        if table is None:
            table = pa.Table.from_pylist([dict(row) for row in self.rows], schema=self.schema)
        sink = io.BytesIO()
        if media_type == PARQUET:
            pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        else:
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
        return sink.getvalue()


def json_bytes(document: object) -> bytes:
    """Compact UTF-8; a lone half of a character, which JSON cannot hold, stays escaped."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")


def choose_media_type(accept: str, offered: Sequence[str]) -> str:
    """The offered media type that `Accept` likes best; the first of equals. Raises Problem `not-acceptable`."""
    if not accept.strip():
        return offered[0]
    ranges = [_parse_range(part) for part in accept[:_MAX_ACCEPT].split(",") if part.strip()]
    best, best_quality = "", 0.0
    for media_type in offered:
        quality = _quality(media_type, ranges)
        if quality > best_quality:
            best, best_quality = media_type, quality
    if not best:
        raise Problem("not-acceptable", f"expected an Accept header that allows one of {', '.join(offered)}")
    return best


def unchanged(request: Request, etag: str) -> bool:
    """Whether the client names this very version in `If-None-Match`."""
    given = request.headers.get("if-none-match", "")[:_MAX_ACCEPT].split(",")
    return etag.removeprefix("W/") in [tag.strip().removeprefix("W/") for tag in given]


def etag_of(*parts: object) -> str:
    """A weak tag: the same parts give the same content; how long it took to answer differs."""
    return f'W/"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}"'


def _parse_range(part: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in part.split(";"))
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                quality = 0.0
    return name, quality


def _quality(media_type: str, ranges: Sequence[tuple[str, float]]) -> float:
    """The quality of the most specific range that holds the media type."""
    names = (media_type, media_type.partition("/")[0] + "/*", "*/*")
    for wanted in names:
        found = [quality for name, quality in ranges if name == wanted]
        if found:
            return max(found)
    return 0.0


def _header(name: str) -> str:
    return "Kiseki-" + "-".join(part.capitalize() for part in name.split("_"))


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _csv(rows: Sequence[Row], names: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(row.get(name)) for name in names])
    return text.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: object) -> object:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict, tuple)) else value
