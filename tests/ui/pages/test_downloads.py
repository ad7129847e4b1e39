"""What the pages give to take along, read back."""

import csv
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from ui.pages.downloads import table_csv, table_parquet, trace_csv, trace_json

HIT = {
    "address": "r/a1/s1/r0/m0/q0", "offset": 3, "global_step": 1, "dp_rank": 0,
    "segments": [{"source": "web", "document_id": "d,1"}],
}  # fmt: skip
SPAN = {"start": 0, "end": 2, "num_tokens": 2, "count": 5, "first_step": 1, "last_step": 4, "text": 'a "b"\n'}
TRACE = {"spans": [{**SPAN, "hits": [HIT, {**HIT, "segments": []}]}, {**SPAN, "hits": []}]}


def test_a_trace_has_a_line_for_each_place() -> None:
    lines = list(csv.DictReader(io.StringIO(trace_csv(TRACE))))
    assert [(line["span"], line["address"], line["document_id"]) for line in lines] == [
        ("0", HIT["address"], "d,1"),
        ("0", HIT["address"], ""),
        ("1", "", ""),
    ]
    assert lines[0]["text"] == 'a "b"\n' and lines[2]["global_step"] == ""
    assert json.loads(trace_json(TRACE)) == TRACE


def test_rows_of_a_query() -> None:
    table = pa.table(
        {
            "n": [1, None],
            "list": pa.array([[1, 2], None], pa.list_(pa.int64())),
            "name": pa.array(["a", "b"]).dictionary_encode(),
            "hash": pa.array([b"\0", b"x"], pa.binary(1)),
        }
    )
    lines = list(csv.reader(io.StringIO(table_csv(table).decode())))
    assert lines == [["n", "list", "name", "hash"], ["1", "[1, 2]", "a", r"b'\x00'"], ["", "", "b", "b'x'"]]
    assert pq.read_table(io.BytesIO(table_parquet(table))).equals(table)
