"""Metrics of other files: what is read of them, which attempt they go to, and where they are seen."""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

from indexer.build.update import update_index
from indexer.metrics.imported import import_metrics
from indexer.reader import IndexReader
from tests.indexer.metrics.test_tensorboard import FILES
from tests.support.example_exports import write_export
from train_hooks.export_format.errors import InputError, RunError


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Attempt 1 with steps 1–5, attempt 2 from step 3 on with steps 4–6; recorded metric: loss = 1 / step."""
    write_export(tmp_path / "run")
    return tmp_path / "run"


def sql(run_dir: Path, statement: str) -> list[tuple[Any, ...]]:
    update_index(run_dir)
    return [tuple(row.values()) for row in IndexReader.open(run_dir).sql(statement)]


def started(run_dir: Path) -> dict[int, float]:
    rows = sql(run_dir, "SELECT attempt, epoch(started) FROM attempts")
    return {attempt: float(time) for attempt, time in rows}


def tree(directory: Path) -> dict[str, str]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


IMPORTED = "SELECT attempt, global_step, name, value FROM step_metrics WHERE origin IS NOT NULL ORDER BY ALL"


def test_without_a_time_the_canonical_attempt_gets_it(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("step,acc\n2,0.2\n4,0.4\n5,0.5\n6,0.6\n99,9.9\n")
    [done] = import_metrics(run, [path])
    assert (done.num_values, done.first_step, done.last_step, done.names, done.num_problems) == (5, 2, 99, ("acc",), 0)
    assert sql(run, IMPORTED) == [(1, 2, "acc", 0.2), (2, 4, "acc", 0.4), (2, 5, "acc", 0.5), (2, 6, "acc", 0.6)]


def test_with_a_time_the_attempt_that_ran_then_gets_it(run: Path, tmp_path: Path) -> None:
    first, second = started(run)[1], started(run)[2]
    assert first < second
    between = (first + second) / 2
    lines = [(4, between, 0.1), (4, second + 1, 0.2), (5, between, 0.3), (5, first - 100, 0.4), (1, second + 9, 0.5)]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps({"step": s, "_timestamp": t, "acc": v}) + "\n" for s, t, v in lines))
    import_metrics(run, [path])
    assert sql(run, IMPORTED) == [
        (1, 1, "acc", 0.5),  # only attempt 1 has step 1
        (1, 4, "acc", 0.1), (1, 5, "acc", 0.3),
        (2, 4, "acc", 0.2), (2, 5, "acc", 0.4),  # before any attempt: canonical
    ]  # fmt: skip


def test_the_later_line_counts(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("step,acc\n4,0.1\n4,0.2\n")
    import_metrics(run, [path])
    assert sql(run, IMPORTED) == [(2, 4, "acc", 0.2)]


def test_origin_is_a_column_and_the_record_comes_first(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("global_step,loss,grad_norm\n5,77,8\n6,78,9\n")
    import_metrics(run, [path])
    found = sql(run, "SELECT DISTINCT origin FROM step_metrics ORDER BY 1 NULLS FIRST")
    assert found == [(None,), (str(path.resolve()),)]
    steps = sql(run, "SELECT global_step, loss, grad_norm FROM steps WHERE canonical AND global_step > 4 ORDER BY 1")
    assert steps == [(5, 0.2, 8.0), (6, 1 / 6, 9.0)]


def test_the_export_is_not_touched_and_a_lost_index_finds_them_again(run: Path, tmp_path: Path) -> None:
    before = tree(run / "export")
    shutil.copy(FILES / "torch.tfevents", tmp_path / "events.out.tfevents.1")
    import_metrics(run, [tmp_path])
    found = sql(run, IMPORTED)
    assert (2, 4, "train/loss", 1.25) in found and len(found) > 15
    assert tree(run / "export") == before
    shutil.rmtree(run / "index")
    assert repr(sql(run, IMPORTED)) == repr(found)  # there is a NaN among them


def test_importing_again_changes_nothing_and_a_grown_file_takes_its_place(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("step,acc\n1,0.1\n")
    assert not import_metrics(run, [path])[0].known
    assert update_index(run).published and not update_index(run).published
    stored = tree(run / "imported_metrics")
    again = import_metrics(run, [path])[0]
    shutil.copy(path, tmp_path / "moved.csv")
    assert again.known and import_metrics(run, [tmp_path / "moved.csv"])[0].known
    assert tree(run / "imported_metrics") == stored and not update_index(run).published
    path.write_text("step,acc\n1,0.1\n2,0.2\n")
    assert not import_metrics(run, [path])[0].known and len(tree(run / "imported_metrics")) == 1
    assert sql(run, IMPORTED) == [(1, 1, "acc", 0.1), (1, 2, "acc", 0.2)]
    import_metrics(run, [path], step_offset=1)
    assert sql(run, IMPORTED) == [(1, 2, "acc", 0.1), (1, 3, "acc", 0.2)]


def test_bad_lines_are_named_and_the_others_are_read(run: Path, tmp_path: Path) -> None:
    table, lines = tmp_path / "m.csv", tmp_path / "m.jsonl"
    table.write_text(
        "Step,Wall time,loss,phase\n1,,0.5,train\n2,5,x,train\n,5,0.1,eval\n3,yesterday,1,a\n4,5\n5,5,nan,b\n"
    )
    lines.write_text(
        '{"step": 1, "train": {"loss": 1, "note": "x"}, "ok": true}\n{"step": 1.5, "a": 1}\nnot json\n[1]\n\n{"a": 2}\n'
        '{"step": 2, "timestamp": "2026-01-01T00:00:00", "a": 3}\n{"step": 2, "timestamp": "2026-01-01T00:00:00Z", "a": 4}\n'
    )
    of_table, of_lines = import_metrics(run, [table, lines])
    assert of_table.problems == (
        "m.csv line 3: expected a number in loss, found 'x'",
        "m.csv line 4: expected a whole number of the step, found none",
        "m.csv line 5: expected seconds since 1970 or ISO 8601 with a zone in Wall time, found 'yesterday'",
        "m.csv line 6: expected 4 cells, found 2",
    )
    assert (of_table.num_values, of_table.names) == (2, ("loss",))
    assert [problem.split(":")[0] for problem in of_lines.problems] == [f"m.jsonl line {n}" for n in (2, 3, 4, 6, 7)]
    assert (of_lines.num_values, of_lines.names) == (2, ("a", "train/loss"))
    found = sql(
        run, "SELECT global_step, name, value FROM step_metrics WHERE name = 'loss' AND origin IS NOT NULL ORDER BY 1"
    )
    assert found[0] == (1, "loss", 0.5) and found[1][0] == 5 and math.isnan(found[1][2])


def test_files_that_cannot_be_used(run: Path, tmp_path: Path) -> None:
    for name, data, message in (
        ("a.csv", b"time,loss\n1,2\n", "expected a column .* found time, loss"),
        ("b.csv", b"step,loss\n", "expected metrics by step, found none"),
        ("c.jsonl", b"nonsense\n", "found none: c.jsonl line 1: expected a JSON object"),
        ("d.csv", b"step,caf\xe9\n1,2\n", "UTF-8"),
        ("g.csv", b"step,loss,loss\n1,2,3\n", "columns of different names, found .loss. twice"),
        ("e.txt", b"step,loss\n1,2\n", "expected a TensorBoard event file"),
        ("f.out.tfevents", b"0123456789abcdef", "does not match its CRC"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=message):
            import_metrics(run, [tmp_path / name])
    with pytest.raises(InputError, match="cannot read"):
        import_metrics(run, [tmp_path / "missing.csv"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected event files"):
        import_metrics(run, [tmp_path / "empty"])
    with pytest.raises(RunError):
        import_metrics(tmp_path, [tmp_path / "a.csv"])
    assert not (run / "imported_metrics").exists()


def test_a_csv_is_read_as_duckdb_reads_it(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    with duckdb.connect() as connection:
        connection.execute(
            f"""COPY (SELECT i % 6 + 1 AS step, 1e-3 * i AS "a,b", CASE WHEN i % 3 = 0 THEN NULL ELSE -i END AS c, 'x' AS d
                      FROM range(600) r(i) ORDER BY i) TO '{path}'"""
        )
        expected = connection.execute(f"SELECT count(c), sum(c), sum(\"a,b\") FROM read_csv('{path}')").fetchall()[0]
    [done] = import_metrics(run, [path])
    with duckdb.connect() as connection:
        stored = f"read_parquet('{run}/imported_metrics/*.parquet')"
        found = connection.execute(
            f"""SELECT count(*) FILTER (name = 'c'), sum(value) FILTER (name = 'c'), sum(value) FILTER (name = 'a,b')
                FROM {stored}"""
        ).fetchall()[0]
    assert found == pytest.approx(expected) and done.num_problems == 0
