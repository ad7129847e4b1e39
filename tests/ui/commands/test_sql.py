"""`kiseki sql`: every format against DuckDB itself, hostile cells, errors that point at the place, and memory."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.cells import cell_len

from indexer.storage.generations import published
from indexer.storage.paths import IndexPaths
from tests.conftest import PEAK_KIB, TextRun
from tests.ui.test_cli import PROGRAM, kiseki, run_here
from ui.terminal.sql_format import SqlFormat
from ui.terminal.table import write_rows

SQL = "SELECT global_step, status, loss, num_tokens, [global_step, 1] AS pair FROM steps ORDER BY global_step"


def expected_rows(run_dir: Path, sql: str) -> list[tuple[object, ...]]:
    paths = IndexPaths(run_dir)
    generation = published(paths)
    assert generation is not None
    with duckdb.connect(str(paths.catalog(generation.number)), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def test_formats_hold_the_same_rows(
    text_run: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = expected_rows(text_run.run_dir, SQL)
    found = {}
    for form in SqlFormat:
        path = tmp_path / f"rows.{form}"
        code, out, _ = run_here(capsys, monkeypatch, "sql", text_run.run_dir, SQL, "--format", form, "--output", path)
        assert (code, out) == (0, "")
        found[form] = path.read_bytes()
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(f"rows.{form}" for form in SqlFormat)
    parquet = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [tuple(row.values()) for row in parquet] == expected
    assert json.loads(found[SqlFormat.JSON]) == parquet
    assert [json.loads(line) for line in found[SqlFormat.NDJSON].splitlines()] == parquet
    [header, *lines] = csv.reader(io.StringIO(found[SqlFormat.CSV].decode()))
    assert header == list(parquet[0])
    assert [(int(a), b, float(c), int(d), json.loads(e)) for a, b, c, d, e in lines] == expected
    assert len(found[SqlFormat.TABLE].splitlines()) == len(expected) + 1


def test_statement_from_a_file_or_standard_input(
    text_run: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "q.sql").write_text("SET threads = 1; -- first\nSELECT count(*) AS n FROM steps -- done\n")
    answers = [
        run_here(capsys, monkeypatch, "sql", text_run.run_dir, "--file", tmp_path / "q.sql", "--json"),
        kiseki("sql", text_run.run_dir, "--format", "json", text="SELECT count(*) AS n FROM steps;"),
    ]
    assert [json.loads(out) for _, out, _ in answers] == [[{"n": text_run.num_steps}]] * 2


def test_schema_lists_every_table_that_the_help_names(
    text_run: TextRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run_here(capsys, monkeypatch, "sql", text_run.run_dir, "--schema", "--json")
    columns = json.loads(out)
    _, text, _ = run_here(capsys, monkeypatch, "sql", "--help")
    named = set(text.split("Tables: ")[1].split(".")[0].replace(",", " ").split())
    assert code == 0 and named == {column["view"] for column in columns}
    assert {"view": "steps", "column": "loss", "type": "DOUBLE"} in columns


def test_errors_are_duckdbs_and_point_at_the_place(
    text_run: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "rows.csv"
    code, out, err = kiseki("sql", text_run.run_dir, "SELECT 1 FRM steps", "--format", "csv", "--output", output)
    assert (code, out) == (2, "") and not list(tmp_path.iterdir())
    lines = err.splitlines()
    assert lines[0].startswith("kiseki: SQL: Parser Error: syntax error") and lines[-1].strip("^ ") == ""
    assert lines[-2][lines[-1].index("^") :].startswith("steps")
    assert "Traceback" not in err
    late = "SELECT CAST(CASE WHEN i < 50000 THEN '1' ELSE 'x' END AS INTEGER) FROM range(60000) r(i)"
    code, _, err = run_here(capsys, monkeypatch, "sql", text_run.run_dir, late, "--format", "csv", "--output", output)
    assert code == 2 and "Conversion Error" in err and not list(tmp_path.iterdir())
    code, _, err = run_here(capsys, monkeypatch, "sql", text_run.run_dir, " -- nothing")
    assert code == 2 and "found none" in err


def reader_of(**columns: list[object]) -> pa.RecordBatchReader:
    return pa.table(columns).to_reader()


def written(form: SqlFormat, terminal_width: int | None = None, **columns: list[object]) -> str:
    sink = io.BytesIO()
    write_rows(reader_of(**columns), sink, form, terminal_width=terminal_width)
    return sink.getvalue().decode()


@pytest.mark.parametrize("form", [SqlFormat.TABLE, SqlFormat.CSV, SqlFormat.JSON, SqlFormat.NDJSON])
def test_no_control_character_reaches_a_terminal(form: SqlFormat) -> None:
    hostile = "a\x1b[2J\x07\x9b31m\x00\x7f\r"
    columns: dict[str, list[object]] = {"c\x1b[0m": [hostile], "文字": ["日本語"]}
    text = written(form, 200, **columns)
    assert not any(ord(character) < 32 and character != "\n" for character in text)
    assert not {"\x7f", "\x9b"} & set(text) and "日本語" in text
    assert form is not SqlFormat.TABLE or len(text.splitlines()) == 2


def test_table_fits_the_terminal() -> None:
    columns: dict[str, list[object]] = {"id": [1, 22], "text": ["全文検索" * 20, "b"], "other": ["x" * 60, None]}
    lines = written(SqlFormat.TABLE, 60, **columns).splitlines()
    assert len(lines) == 3 and all(cell_len(line) <= 60 for line in lines) and "…" in lines[1]
    assert lines[1].startswith(" 1  全文") and lines[2].startswith("22  b")
    assert "全文検索" * 20 in written(SqlFormat.TABLE, None, **columns)
    many: dict[str, list[object]] = {f"column_{number}": ["value"] for number in range(20)}
    assert written(SqlFormat.TABLE, 60, **many).splitlines()[:2] == ["column_0: value", "column_1: value"]


def test_json_is_json() -> None:
    text = written(SqlFormat.JSON, None, a=[float("nan"), float("inf"), 1.5], b=[b"\x00\xff", None, b""])
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == [
        {"a": None, "b": "00ff"}, {"a": None, "b": None}, {"a": 1.5, "b": ""},
    ]  # fmt: skip
    assert json.loads(written(SqlFormat.JSON, None, a=[])) == []


def test_a_reader_that_leaves_is_no_error(text_run: TextRun) -> None:
    command = [str(PROGRAM), "sql", str(text_run.run_dir), "FROM range(3000000)", "--format", "csv"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"range\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_many_rows_do_not_fill_memory(text_run: TextRun, tmp_path: Path) -> None:
    """1 million rows (as Arrow 60 MB) add less than 40 MB to what three rows take."""

    def peak_mib(rows: int) -> float:
        sql = f"SELECT i, repeat('x', 40) || i AS s FROM range({rows}) r(i)"
        arguments = ["sql", str(text_run.run_dir), sql, "--format", "csv", "--output", str(tmp_path / "out.csv")]
        script = (
            f"import sys; sys.argv = ['kiseki', *{arguments!r}]\nfrom ui.cli import main\n"
            "try: main()\nexcept SystemExit: pass\n"
            f"print({PEAK_KIB} / 1024)"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert peak_mib(1_000_000) - peak_mib(3) < 40
