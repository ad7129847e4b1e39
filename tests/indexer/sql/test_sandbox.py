"""Hostile SQL against the real worker processes: deadlines, memory, the file system, and the parent that goes on."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest

from indexer.reader import IndexReader
from indexer.sql.limits import SqlLimitError, SqlLimits
from indexer.sql.queries import SqlError
from indexer.sql.sandbox import SqlSandbox, run_untrusted
from indexer.sql.statement import StatementRefused, check_statement
from indexer.sql.worker import receive_frame, send_frame
from indexer.storage.catalog import catalog_files
from tests.conftest import TextRun
from tests.indexer.sql.hostile_statements import BOMBS, REFUSED
from train_hooks.export_format.errors import InputError

pytestmark = pytest.mark.alone

CANARY = "canary-8d1f"
DEADLINE_S, MAX_GROWTH = 0.4, 512 << 20
SLACK_S = 5.0
"""0.5 on a machine that does nothing else; what a bomb takes without a deadline is minutes."""
MEMORY = 256 << 20


@pytest.fixture(scope="module")
def reader(text_run: TextRun) -> IndexReader:
    return IndexReader.open(text_run.run_dir)


@pytest.fixture(scope="module")
def sandbox(reader: IndexReader) -> Iterator[SqlSandbox]:
    limits = SqlLimits(deadline_s=DEADLINE_S, memory_bytes=MEMORY, max_rows=500, max_bytes=1 << 20)
    with SqlSandbox(reader, limits, num_workers=3) as opened:
        yield opened


def settle(sandbox: SqlSandbox) -> None:
    """Wait until the sandbox answers again: a worker that was killed has a successor, which starts."""
    for _ in range(60):
        try:
            assert sandbox.run("SELECT 42 AS x").table.to_pylist() == [{"x": 42}]
        except SqlLimitError:
            continue
        return
    raise AssertionError("the sandbox does not recover")


def outcome(sandbox: SqlSandbox, sql: str) -> tuple[str, str, float]:
    """(what came of it, its text, seconds); asked again while no worker has started, as after others were killed."""
    started = time.monotonic()
    try:
        result = sandbox.run(sql)
        said = ("truncated" if result.truncated else "rows", str(result.table.slice(0, 50).to_pylist())[:10_000])
    except SqlLimitError as error:
        if error.limit == "busy":
            return outcome(sandbox, sql)
        said = (error.limit, str(error))
    except SqlError as error:
        said = ("refused", str(error))
    return *said, time.monotonic() - started


def places(tmp_path: Path, reader: IndexReader) -> dict[str, str]:
    (tmp_path / "secret.csv").write_text(f"a,b\n1,{CANARY}\n")
    return {
        "SECRET": str(tmp_path / "secret.csv"),
        "OUT": str(tmp_path / "out"),
        "CATALOG": str(reader.paths.catalog(reader.generation.number)),
        "SHARD": str(catalog_files(reader.paths, reader.generation.parts)[0]),
    }


def put(sql: str, found: dict[str, str]) -> str:
    for name, path in found.items():
        sql = sql.replace(name, path)
    return sql


def tree(*directories: Path) -> dict[str, str]:
    """Hash of every file."""
    files = [path for directory in directories for path in directory.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def resident_bytes() -> dict[int, int]:
    """By pid, of this process and all that it has started."""
    found = {}
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    for pid in [os.getpid(), *(int(pid) for path in children for pid in path.read_text().split())]:
        try:
            found[pid] = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            continue
    return found


class MemoryWatch(threading.Thread):
    """How much any of our processes grew beyond what it had when it was first seen."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.growth, self._stop_asked = 0, threading.Event()

    def run(self) -> None:
        first: dict[int, int] = {}
        while not self._stop_asked.wait(0.02):
            for pid, size in resident_bytes().items():
                self.growth = max(self.growth, size - first.setdefault(pid, size))

    def stop(self) -> int:
        self._stop_asked.set()
        self.join()
        return self.growth


def test_cases_are_many() -> None:
    assert len(REFUSED) + len(BOMBS) >= 120


def test_refused_statements(sandbox: SqlSandbox, reader: IndexReader, tmp_path: Path) -> None:
    found = places(tmp_path, reader)
    before = tree(tmp_path, reader.paths.run_dir)
    settle(sandbox)
    for name, sql in REFUSED.items():
        kind, text, took_s = outcome(sandbox, put(sql, found))
        assert kind == "refused" or name.startswith("nested"), (name, kind, text)
        assert CANARY not in text and took_s < DEADLINE_S + SLACK_S, (name, text, took_s)
    assert tree(tmp_path, reader.paths.run_dir) == before
    settle(sandbox)


def test_bombs(sandbox: SqlSandbox, reader: IndexReader, tmp_path: Path) -> None:
    before = tree(reader.paths.run_dir)
    watch = MemoryWatch()
    watch.start()
    kinds = {}
    for name, sql in BOMBS.items():
        kinds[name], text, took_s = outcome(sandbox, sql)
        assert took_s < DEADLINE_S + SLACK_S, (name, kinds[name], text, took_s)
    assert watch.stop() < MAX_GROWTH
    assert {kinds[name] for name in ("cross join", "endless recursion", "range")} == {"deadline"}
    assert kinds["huge output"] in ("truncated", "deadline")  # the latter on a busy machine
    assert tree(reader.paths.run_dir) == before and not list(tmp_path.iterdir())
    settle(sandbox)


UNCHECKED = """
import indexer.sql.worker as worker
write = worker._write
worker.check_statement = lambda *anything: None
worker._write = lambda relation, *rest: relation is not None and write(relation, *rest)
worker.main()
"""


def test_lock_and_kernel_hold_without_the_look_at_the_statement(text_run: TextRun, tmp_path: Path) -> None:
    """Layers 2 and 3 alone: a worker that checks no statement, over a catalog whose views read Parquet files."""
    reader = IndexReader.open(text_run.run_dir)
    found = places(tmp_path, reader)
    parquet = tmp_path / "shard.parquet"
    parquet.write_bytes(Path(found["SHARD"]).read_bytes())
    catalog = tmp_path / "catalog.duckdb"
    with duckdb.connect(str(catalog)) as connection:
        connection.execute("CREATE TABLE runs AS SELECT 'x' AS run_id")
        connection.execute(f"CREATE VIEW sequences AS SELECT * FROM read_parquet('{parquet}')")
    found |= {"CATALOG": str(catalog), "SHARD": str(parquet)}
    settings = {
        "catalog": str(catalog),
        "index": str(tmp_path),
        "files": [str(parquet)],
        "memory_bytes": MEMORY,
        "max_rows": 9,
        "max_bytes": 9999,
    }
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", UNCHECKED, str(theirs.fileno())]
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    before = tree(tmp_path)
    root = str(Path(__file__).parents[3])
    with (
        (tmp_path / "settings.json").open() as file,
        subprocess.Popen(
            command, stdin=file, pass_fds=[theirs.fileno()], env={"PYTHONPATH": root}, cwd=tmp_path
        ) as worker,
    ):
        theirs.close()
        ours.settimeout(20)
        ready = receive_frame(ours)
        assert ready is not None and ready[0] == b"R"
        assert b"error" not in ask(ours, "SELECT * FROM sequences")[-1][1]
        skipped = ["nested", "surrogates", "pandas pointer", "raw pointers", "sleep"]
        skipped += [] if json.loads(ready[1])["landlock"] else ["copy over a shard"]
        for name, sql in REFUSED.items():
            if not name.startswith(tuple(skipped)):
                frames = ask(ours, put(sql, found))
                assert CANARY.encode() not in b"".join(data for _, data in frames), name
        assert ask(ours, "SELECT * FROM sequences")[-1][0] == b"D"
        ours.close()
        worker.wait(20)
    assert tree(tmp_path) == before


def ask(channel: socket.socket, sql: str) -> list[tuple[bytes, bytes]]:
    send_frame(channel, b"Q", json.dumps({"sql": sql, "cpu_s": 10}).encode())
    frames: list[tuple[bytes, bytes]] = []
    while not frames or frames[-1][0] == b"A":
        frame = receive_frame(channel)
        assert frame is not None, sql
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def patient(reader: IndexReader) -> Iterator[SqlSandbox]:
    with SqlSandbox(reader, SqlLimits(deadline_s=30, max_rows=500)) as opened:
        yield opened


def test_answers_are_those_of_an_ordinary_connection(patient: SqlSandbox, reader: IndexReader) -> None:
    for sql in (
        "SELECT * FROM steps ORDER BY global_step",
        "FROM documents ORDER BY ALL LIMIT 5",
        "SHOW TABLES",
        "DESCRIBE steps;",
        "WITH a AS (SELECT source, sum(length) AS n FROM segments GROUP BY 1) SELECT * FROM a ORDER BY 1 -- done",
        # rounded: threads add up in any order, so that the last digits of a mean differ
        "SELECT round(avg(loss), 9), approx_quantile(lr, 0.5), list(DISTINCT global_step ORDER BY global_step) FROM steps",
        "SELECT address, row_number() OVER (ORDER BY address) AS n FROM sequences QUALIFY n <= 3",
        "SELECT unnest([1, 2]) UNION ALL SELECT i FROM range(3) r(i) ORDER BY 1",
        "WITH RECURSIVE a AS (SELECT 1 i UNION ALL SELECT i + 1 FROM a WHERE i < 5) SELECT * FROM a",
        "SELECT TIMESTAMPTZ '2026-01-01' AS t, {'a': 1} AS s, 'é' AS x, 1.5::DECIMAL(9, 2) AS d, NULL AS n",
    ):
        with reader.catalog() as connection:
            expected = connection.sql(sql).to_arrow_table()
        result = patient.run(sql)
        assert result.table.to_pylist() == expected.slice(0, 500).to_pylist(), sql
        assert result.truncated == (expected.num_rows > 500) and result.generation == reader.generation.number


def test_caps_are_exact(reader: IndexReader) -> None:
    with SqlSandbox(reader, SqlLimits(max_rows=10, max_bytes=1000, deadline_s=20)) as sandbox:
        assert (sandbox.run("FROM range(10)").table.num_rows, sandbox.run("FROM range(10)").truncated) == (10, False)
        assert (sandbox.run("FROM range(11)").table.num_rows, sandbox.run("FROM range(11)").truncated) == (10, True)
        wide = sandbox.run("SELECT repeat('x', 300) FROM range(9)")
        assert wide.truncated and 0 < wide.table.nbytes <= 1000
        none = sandbox.run("SELECT repeat('x', 3000)")
        assert (none.table.num_rows, none.truncated) == (0, True)


def test_what_is_too_large_is_said_to_be(patient: SqlSandbox) -> None:
    for name in ("repeat", "list"):
        with pytest.raises(SqlLimitError, match="more than 384 MiB") as error:
            patient.run(BOMBS[name])
        assert error.value.limit == "memory"


def test_errors_keep_the_message_and_point_at_the_place(patient: SqlSandbox) -> None:
    with pytest.raises(SqlError, match=r"(?s)syntax error.*LINE 1: SELECT 1 FRM runs\n +\^"):
        patient.run("SELECT 1 FRM runs")
    with pytest.raises(SqlError, match="steps"):
        patient.run("SELECT * FROM stepz")
    with pytest.raises(SqlError, match="read_text cannot be used here, only"):
        patient.run("FROM read_text('x')")


def test_moved_run_and_a_message_without_its_place(text_run: TextRun, tmp_path: Path) -> None:
    shutil.copytree(text_run.run_dir, tmp_path / "moved", symlinks=True)
    reader = IndexReader.open(tmp_path / "moved")
    with SqlSandbox(reader, SqlLimits(deadline_s=30)) as sandbox:
        rows = sandbox.run("SELECT count(*) AS n FROM sequences").table.to_pylist()
        assert rows == reader.sql("SELECT count(*) AS n FROM sequences")
        for path in catalog_files(reader.paths, reader.generation.parts):
            path.unlink()
        with pytest.raises(SqlError, match="index/parts/") as error:
            sandbox.run("SELECT max(loss) FROM sequences")
        assert str(tmp_path) not in str(error.value)


def test_many_threads_share_few_workers(reader: IndexReader) -> None:
    with SqlSandbox(reader, SqlLimits(deadline_s=20), num_workers=2) as sandbox, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda i: sandbox.run(f"SELECT {i} AS x").table["x"][0].as_py(), range(60)))
    assert answers == list(range(60))


def test_busy_closed_and_unusable(reader: IndexReader, tmp_path: Path) -> None:
    before = set(resident_bytes())
    with SqlSandbox(reader, SqlLimits(deadline_s=1.0)) as sandbox, ThreadPoolExecutor(2) as threads:
        settle(sandbox)
        both = [threads.submit(sandbox.run, BOMBS["cross join"]) for _ in range(2)]
        errors = [future.exception() for future in both]
        assert all(isinstance(error, SqlLimitError) for error in errors)
        assert "deadline" in {error.limit for error in errors if isinstance(error, SqlLimitError)}
    assert set(resident_bytes()) <= before
    assert run_untrusted(reader, "SELECT 1 AS x", SqlLimits(deadline_s=20)).table.to_pylist() == [{"x": 1}]
    (tmp_path / "a*b").symlink_to(reader.paths.run_dir)
    shutil.copytree(reader.paths.run_dir, tmp_path / "a[b]", symlinks=True)
    assert run_untrusted(IndexReader.open(tmp_path / "a*b"), "FROM runs", SqlLimits(deadline_s=20)).table.num_rows == 1
    with pytest.raises(InputError, match="without"):
        SqlSandbox(IndexReader.open(tmp_path / "a[b]"))
    with pytest.raises(InputError, match="limits > 0"):
        SqlLimits(max_rows=0)


def test_check_statement_needs_no_worker() -> None:
    with duckdb.connect() as connection:
        check_statement(connection, "SELECT 1")
        with pytest.raises(StatementRefused, match="found COPY_QUERY"):
            check_statement(connection, REFUSED["with copy"])
        with pytest.raises(StatementRefused, match="found 2"):
            check_statement(connection, "SELECT 1; SELECT 2")
