"""What the pages give to take along: a trace as JSON or CSV, the rows of a query as CSV or Parquet."""

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

__all__ = ["table_csv", "table_parquet", "trace_csv", "trace_json"]

Json = Mapping[str, Any]


def trace_json(found: Json) -> str:
    """The trace as the API gave it."""
    return json.dumps(found, ensure_ascii=False, indent=1)


def trace_csv(found: Json) -> str:
    """A line for each listed place of each span; one without a place for a span of which none is listed."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(
        ["span", "start", "end", "num_tokens", "count", "first_step", "last_step", "text", "address", "offset",
         "global_step", "dp_rank", "source", "document_id"]
    )  # fmt: skip
    for index, span in enumerate(found["spans"]):
        of_span = [index, span["start"], span["end"], span["num_tokens"], span["count"], span["first_step"],
                   span["last_step"], span["text"]]  # fmt: skip
        for hit in span["hits"] or [None]:
            segment = hit["segments"][0] if hit and hit["segments"] else {"source": "", "document_id": ""}
            of_hit = [hit["address"], hit["offset"], hit["global_step"], hit["dp_rank"]] if hit else [""] * 4
            writer.writerow([*of_span, *of_hit, segment["source"], segment["document_id"]])
    return file.getvalue()


def table_csv(table: pa.Table) -> bytes:
    """The rows as CSV; what CSV cannot hold, such as lists, as text."""
    file = io.BytesIO()
    columns = [_for_csv(column) for column in table.columns]
    pa_csv.write_csv(pa.table(columns, names=table.column_names), file)
    return file.getvalue()


def table_parquet(table: pa.Table) -> bytes:
    """The rows as a Parquet file."""
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def _for_csv(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.cast(pa.string())
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())
    return column
