"""The catalog as others open it: columns as documented, any working directory, moved runs, strange names, growing runs."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from indexer.build.parts import PART_SCHEMAS
from indexer.build.update import IndexOptions, update_index
from indexer.reader import IndexReader
from indexer.steps.explain import explain_step
from indexer.storage.catalog import catalog_files
from tests.conftest import TextRun
from tests.support.example_exports import begin_attempt, begin_run, committed_step, write_export
from tests.support.export_maker import all_rows
from tests.support.make_kept_exports import EXPORTS
from train_hooks.export_format.errors import QueryError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.committed_step import as_gap
from train_hooks.hook.export.row_builder import RowBuilder

DOCUMENT = Path(__file__).parents[3] / "docs" / "catalog.md"
VIEWS = ("runs", "attempts", "steps", "step_metrics", "sequences", "segments", "documents", "shards", "gaps")
READ = "import duckdb, sys; print(duckdb.connect(sys.argv[1], read_only=True).sql(sys.argv[2]).fetchall())"


def documented() -> dict[str, list[tuple[str, str]]]:
    """View → (column, type), from docs/catalog.md."""
    found: dict[str, list[tuple[str, str]]] = {}
    for section in DOCUMENT.read_text(encoding="utf-8").split("\n## ")[1:]:
        rows = re.findall(r"^\| (\w+) \| ([A-Z]+) \|", section, re.MULTILINE)
        found[section.split("\n")[0]] = rows
    return found


def test_every_view_and_column_is_documented_with_its_type(text_run: TextRun) -> None:
    reader = IndexReader.open(text_run.run_dir)
    names = {row["view_name"] for row in reader.sql("SELECT view_name FROM duckdb_views() WHERE NOT internal")}
    public = {name for name in names if not name.startswith(("stored_", "all_"))}
    actual = {
        name: [(row["column_name"], row["column_type"]) for row in reader.sql(f"DESCRIBE {name}")] for name in public
    }
    assert documented() == actual
    assert set(VIEWS) < public


def contents(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows of all views that do not depend on how the index came about."""
    reader = IndexReader.open(run_dir)
    return {
        name: sorted(reader.sql(f"SELECT COLUMNS(lambda name: name <> 'unix_time_s') FROM {name}"), key=str)
        for name in (*VIEWS, "sequence_sources")
        if name not in ("runs", "shards")
    }


def test_rows_are_those_of_the_export(tmp_path: Path) -> None:
    """Superseded and canonical rows, losses, segments and gaps, against the export read row by row."""
    write_export(tmp_path / "run")
    update_index(tmp_path / "run", IndexOptions(shard_tokens=100))
    rows, found = all_rows(tmp_path / "run"), contents(tmp_path / "run")
    by_address = {row["address"]: row for row in found["sequences"]}
    assert set(by_address) == {str(row.address) for row in rows}
    for row in rows:
        other = by_address[str(row.address)]
        assert (other["loss"], other["leaf"], other["sample_index"]) == (row.loss, row.leaf, row.sample_index)
        assert other["canonical"] == (row.address.attempt == 2 or row.address.global_step <= 3)
        assert (other["num_tokens"], other["num_segments"]) == (len(row.tokens), len(row.segments))
        assert (other["evidence"], other["matched"], other["relation"]) == ("declared", "count", None)
    segments = {(row["address"], row["segment"]): row for row in found["segments"]}
    assert len(segments) == sum(len(row.segments) for row in rows)
    for row in rows:
        for number, segment in enumerate(row.segments):
            other = segments[str(row.address), number]
            for name in ("start", "length", "source", "document_id", "document_token_offset"):
                assert other[name] == getattr(segment, name)
    shares = {(row["address"], row["source"]): (row["num_tokens"], row["share"]) for row in found["sequence_sources"]}
    assert shares[str(rows[0].address), "web"] == (6, 6 / 16)
    steps = {(row["attempt"], row["global_step"]): row for row in found["steps"]}
    assert len(steps) == 8 and sum(row["canonical"] for row in steps.values()) == 6
    assert all(row["num_sequences"] == 8 and row["num_tokens"] == 128 for row in steps.values())
    assert steps[1, 4]["loss"] == 1 / 4 and not steps[1, 4]["canonical"]


def test_losses_and_evidence_are_those_of_the_export(tmp_path: Path) -> None:
    """Of a run with losses of rows and segments, in time and late, and with evidence that differs from row to row."""
    run_dir = tmp_path / "run"
    shutil.copytree(EXPORTS / "3-sealed", run_dir)
    update_index(run_dir)
    attempts = RunReader(run_dir).attempts()
    defaults = {attempt.info.attempt: attempt.info for attempt in attempts}
    late = {address: loss for attempt in attempts for address, loss in attempt.late_losses()}
    assert len(late) == 2 and all(str(address).startswith("kept/a1/s1/") for address in late)
    reader = IndexReader.open(run_dir)
    found = {row["address"]: row for row in reader.sql("SELECT * FROM sequences")}
    segments = {(row["address"], row["segment"]): row["loss"] for row in reader.sql("SELECT * FROM segments")}
    kinds = set()
    for row in all_rows(run_dir):
        came, info, other = late.get(row.address), defaults[row.address.attempt], found[str(row.address)]
        assert other["loss"] == (came.loss if came is not None and row.loss is None else row.loss)
        assert other["evidence"] == (row.evidence or info.default_evidence)
        assert other["matched"] == (row.matched or info.default_matched)
        assert other["relation"] == row.relation
        kinds.add((other["evidence"], other["matched"], other["relation"]))
        of_segments = [segment.loss for segment in row.segments]
        if came is not None and came.segments is not None:
            of_segments = list(came.segments)
        assert repr([segments[str(row.address), number] for number in range(len(of_segments))]) == repr(of_segments)
    assert len(kinds) == 4 and sum(loss is not None for loss in segments.values()) == 5


@pytest.mark.parametrize("name", ["run", "it's * [a-c] layer=3/run"])
def test_plain_duckdb_opens_it_from_anywhere_and_after_a_move(tmp_path: Path, name: str) -> None:
    run_dir, elsewhere = tmp_path / "at" / name, tmp_path / "elsewhere"
    elsewhere.mkdir()
    write_export(run_dir)
    update_index(run_dir)
    query = "SELECT count(*), count(DISTINCT address), min(repeated_share) FROM sequences"

    def ask(path: Path, sql: str = query) -> str:
        command = [sys.executable, "-c", READ, str(path), sql]
        return subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=True).stdout.strip()

    assert ask(run_dir / "index" / "catalog.duckdb") == "[(64, 64, 0.0)]"
    columns = [row["column_name"] for row in IndexReader.open(run_dir).sql("DESCRIBE segments")]
    assert columns == [column for column, _ in documented()["segments"]], "no column comes from the directory's name"
    moved = tmp_path / "moved"
    shutil.move(run_dir, moved)
    assert IndexReader.open(moved).sql(query)[0]["count_star()"] == 64
    with duckdb.connect(str(moved / "index" / "catalog.duckdb"), read_only=True) as plain:
        with pytest.raises(duckdb.IOException):
            plain.sql(query).fetchall()
        plain.execute(f"SET VARIABLE kiseki_index = '{moved / 'index'}'")
        assert plain.sql(query).fetchall()[0][0] == 64
    assert update_index(moved).published, "publishing anew names the new place"
    assert not update_index(moved).published
    assert ask(moved / "index" / "catalog.duckdb") == "[(64, 64, 0.0)]"


def test_an_open_catalog_is_no_obstacle_to_the_next_generation(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    write_export(run_dir)
    hidden = run_dir / "export" / "attempts"
    second = sorted(hidden.iterdir())[1]
    shutil.move(second, tmp_path / "second")
    update_index(run_dir)
    link = run_dir / "index" / "catalog.duckdb"
    with duckdb.connect(str(link), read_only=True) as before:
        assert before.sql("SELECT count(*) FROM sequences").fetchall() == [(40,)]
        shutil.move(tmp_path / "second", second)
        assert update_index(run_dir).generation == 2
        assert before.sql("SELECT count(*) FROM sequences WHERE canonical").fetchall() == [(40,)]
        with duckdb.connect(str(link.resolve()), read_only=True) as after:
            assert after.sql("SELECT count(*) FROM sequences WHERE canonical").fetchall() == [(48,)]


def test_the_files_of_the_views_are_all_that_they_read(text_run: TextRun) -> None:
    reader = IndexReader.open(text_run.run_dir)
    files = catalog_files(reader.paths, reader.generation.parts)
    assert all(file.exists() for file in files) and len(files) == len(PART_SCHEMAS) * len(reader.generation.parts)
    with duckdb.connect(str(reader.paths.catalog(reader.generation.number)), read_only=True) as locked:
        names = ", ".join("'" + str(file).replace("'", "''") + "'" for file in files)
        locked.execute(f"SET allowed_paths = [{names}]")
        locked.execute("SET enable_external_access = false")
        for name in (*VIEWS, "sequence_sources"):
            assert locked.sql(f"SELECT count(*) FROM {name}").fetchall()


def test_damaged_parts_are_made_again(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    write_export(run_dir)
    update_index(run_dir, IndexOptions(shard_tokens=100))
    before = contents(run_dir)
    parts = run_dir / "index" / "parts"
    file = sorted(parts.glob("a000001-*/sequences.parquet"))[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert not update_index(run_dir, IndexOptions(shard_tokens=100)).published, "sizes alone are looked at"
    assert update_index(run_dir, IndexOptions(shard_tokens=100, verify=True)).published
    assert contents(run_dir) == before
    shutil.rmtree(parts)
    assert update_index(run_dir, IndexOptions(shard_tokens=100)).published
    assert contents(run_dir) == before
    generation = run_dir / "index" / "generations" / "000003" / "generation.json"
    named = json.loads(generation.read_text())["parts"]
    assert set(named) == {entry.name for entry in parts.iterdir()}


def test_gaps(tmp_path: Path) -> None:
    """Step 3 was dropped on both ranks, step 4 on one: the catalog says so, and the steps around can be explained."""
    run = begin_run(tmp_path / "run")
    attempt = begin_attempt(tmp_path / "run", run, num_writers=2)
    for dp_rank in range(2):
        directory = ExportPaths(tmp_path / "run").attempt_dir(1)
        writer = RankWriter(OsFileSystem(), directory, run, attempt, dp_rank)
        builder = RowBuilder(run, attempt, dp_rank, RunReader(tmp_path / "run").secret())
        for number in range(1, 7):
            step = committed_step(number, dp_rank)
            dropped = number == 3 or (number, dp_rank) == (4, 1)
            writer.append([builder.frame(as_gap(step, "the disk was full") if dropped else step)])
        writer.close()
    update_index(tmp_path / "run")
    found = contents(tmp_path / "run")
    gaps = [(row["global_step"], row["dp_rank"], row["num_rows"], row["reason"]) for row in found["gaps"]]
    assert gaps == [(3, 0, 4, "the disk was full"), (3, 1, 4, "the disk was full"), (4, 1, 4, "the disk was full")]
    steps = {row["global_step"]: (row["num_sequences"], row["num_tokens"], row["loss"]) for row in found["steps"]}
    assert steps[3] == (0, 0, 1 / 3) and steps[4][:2] == (4, 64) and steps[5][:2] == (8, 128)
    reader = IndexReader.open(tmp_path / "run")
    with pytest.raises(QueryError, match="step 3 of attempt 1 has no sequences"):
        explain_step(reader, 3)
    explained = explain_step(reader, 5, window=3)
    assert (explained.window_first_step, explained.window_num_steps, explained.window_num_sequences) == (1, 3, 20)


def test_numbers_that_json_lacks_reach_the_catalog(text_run: TextRun) -> None:
    reader = IndexReader.open(text_run.run_dir)
    (row,) = reader.sql(
        "SELECT min(loss) AS loss, count(loss) AS num, max(lr) AS lr, any_value(grad_norm) AS norm FROM steps"
    )
    assert row["num"] == text_run.num_steps and row["lr"] == 1e-3 and row["norm"] is None and np.isfinite(row["loss"])
