"""SQL of people we do not know, over one generation's catalog.

What holds, whatever the statement is, each layer without those before it (docs/adr/answers/0010):

1. one SELECT over the catalog's tables and views, seen in DuckDB's own parse tree (sql_statement);
2. DuckDB with the catalog read-only, no external access, a locked configuration, one thread, no temporary files;
3. a process of its own, with an empty environment, that gave up more memory, writing, forking and (with Landlock) opening
   any other file (sql_confinement), and has a limit of CPU time;
4. we kill that process at the deadline, take no more than so many bytes from it, and start another one.

A catalog says of which sources and documents everything is, hidden or not: this is for people who may see that.

A worker that answered is used again: a small query costs a millisecond or two, and no start of a process.
"""

import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa

from indexer.reader import IndexReader
from indexer.sql.limits import SqlLimitError, SqlLimits
from indexer.sql.queries import SqlError
from indexer.sql.worker import HEADER
from indexer.storage.catalog import catalog_files, sql_path
from train_hooks.export_format.errors import IncompleteError, InputError, QueryError

__all__ = ["SqlResult", "SqlSandbox", "run_untrusted"]

MAX_STATEMENT_BYTES = 32_768
QUERIES_A_WORKER = 500
SCHEMA_BYTES = 1 << 20
MESSAGE_BYTES, START_S, FRAME_S = 1 << 16, 60.0, 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SqlResult:
    """The rows of a query, at most as many as the limits let through; `truncated` where there were more."""

    table: pa.Table
    truncated: bool
    took_ms: float
    generation: int


class SqlSandbox:
    """A few processes that run strangers' SELECTs over one generation's catalog. Safe to share between threads."""

    def __init__(self, reader: IndexReader, limits: SqlLimits | None = None, *, num_workers: int = 1) -> None:
        """Starts the workers, and does not wait for them. Raises InputError where the system cannot confine them."""
        if sys.platform != "linux":
            raise InputError("SQL of others needs Linux, whose kernel confines it; use `kiseki sql` for your own")
        index = str(reader.paths.index.resolve())
        if sql_path(index) != index:  # DuckDB would have to look for it, and may not
            raise InputError(f"SQL of others needs a run directory without * ? [ in its path, found {index}")
        self.limits = limits or SqlLimits()
        self._generation = reader.generation.number
        self._settings = json.dumps(
            {
                "catalog": str(reader.paths.catalog(reader.generation.number)),
                "index": index,
                "files": [str(file) for file in catalog_files(reader.paths, reader.generation.parts)],
                "memory_bytes": self.limits.memory_bytes,
                "max_rows": self.limits.max_rows,
                "max_bytes": self.limits.max_bytes,
            }
        )
        self._free: queue.Queue[_Worker] = queue.Queue()
        self._lock, self._closed = threading.Lock(), False
        for _ in range(num_workers):
            self._free.put(_Worker(self._settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the free workers; one that is busy ends with its query."""
        with self._lock, contextlib.suppress(queue.Empty):
            self._closed = True
            while True:
                self._free.get_nowait().end()

    def run(self, sql: str) -> SqlResult:
        """Run one SELECT. Raises SqlError for what DuckDB or we refuse, SqlLimitError at a limit."""
        started = time.monotonic()
        deadline = started + self.limits.deadline_s
        question = _question(sql, self.limits)
        try:
            worker = self._free.get(timeout=self.limits.deadline_s)
        except queue.Empty:
            raise SqlLimitError("busy", f"no worker was free in {self.limits.deadline_s:g} s; try again") from None
        usable = False
        try:
            if not worker.wait_for_start(deadline):
                usable = True
                raise SqlLimitError("busy", f"the worker did not start in {self.limits.deadline_s:g} s; try again")
            table, truncated = worker.ask(question, deadline, self.limits)
            usable = True
        except SqlError:
            usable = True
            raise
        finally:
            self._give_back(worker, usable=usable)
        took_ms = (time.monotonic() - started) * 1000
        return SqlResult(table=table, truncated=truncated, took_ms=took_ms, generation=self._generation)

    def _give_back(self, worker: "_Worker", *, usable: bool) -> None:
        with self._lock:
            if self._closed or not usable or worker.num_queries >= QUERIES_A_WORKER:
                worker.end()
                if self._closed:
                    return
                worker = _Worker(self._settings)
            self._free.put(worker)


def run_untrusted(reader: IndexReader, sql: str, limits: SqlLimits | None = None) -> SqlResult:
    """Run one SELECT in a process of its own. A server keeps a `SqlSandbox` instead, whose process is there already."""
    with SqlSandbox(reader, limits) as sandbox:
        return sandbox.run(sql)


def _question(sql: str, limits: SqlLimits) -> bytes:
    try:
        size = len(sql.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise SqlError(f"expected a statement of whole characters: {error}") from error
    if size > MAX_STATEMENT_BYTES:
        raise SqlError(f"expected a statement of at most {MAX_STATEMENT_BYTES:,} bytes, found a longer one")
    data = json.dumps({"sql": sql, "cpu_s": limits.deadline_s + 1}).encode()
    return HEADER.pack(b"Q", len(data)) + data


class _Worker:
    """One process of sql_worker, and our end of its socket."""

    def __init__(self, settings: str) -> None:
        self.num_queries = 0
        self._ready, self._started = False, time.monotonic()
        self._channel, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile("w+", encoding="utf-8") as file:  # too long for an argument
            file.write(settings)
            file.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "indexer.sql.worker", str(theirs.fileno())],
                stdin=file,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd="/",
                env=_environment(),
            )

    def wait_for_start(self, deadline: float) -> bool:
        """Whether it has started by then. Raises IncompleteError where it cannot start, or takes too long for ever."""
        if self._ready:
            return True
        try:
            self._channel.settimeout(max(deadline - time.monotonic(), 1e-3))
            self._channel.recv(1, socket.MSG_PEEK)  # nothing is taken of a frame that is not there in time
            kind, data = self._frame(time.monotonic() + FRAME_S, MESSAGE_BYTES)
        except TimeoutError:
            if time.monotonic() < self._started + START_S:
                return False
            raise IncompleteError(f"the process for SQL did not start in {START_S:g} s") from None
        except (EOFError, OSError):
            raise IncompleteError(f"the process for SQL did not start: it ended with {self.end()}") from None
        if kind != b"R":
            raise IncompleteError(f"the process for SQL did not start: {json.loads(data)['message']}")
        self._ready = True
        return True

    def ask(self, question: bytes, deadline: float, limits: SqlLimits) -> tuple[pa.Table, bool]:
        """The answer to a statement. Raises SqlError, SqlLimitError; after the latter the worker is of no more use."""
        self.num_queries += 1
        try:
            self._channel.settimeout(max(deadline - time.monotonic(), 1e-3))
            self._channel.sendall(question)
            return self._answer(deadline, limits)
        except TimeoutError:
            self.end()
            raise SqlLimitError(
                "deadline", f"the query took longer than {limits.deadline_s:g} s; ask for fewer steps or columns"
            ) from None
        except (EOFError, OSError, pa.ArrowInvalid):
            raise _died(self.end(), limits) from None

    def end(self) -> int:
        """Kill the process; its exit code, negative for a signal."""
        self._process.kill()
        self._channel.close()
        return self._process.wait()

    def _answer(self, deadline: float, limits: SqlLimits) -> tuple[pa.Table, bool]:
        pieces: list[bytes] = []
        left = limits.max_bytes * 2 + SCHEMA_BYTES
        for kind, data in self._frames(deadline, left):
            if kind == b"D":
                stream = pa.ipc.open_stream(pa.py_buffer(b"".join(pieces)))
                table = stream.read_all()
                table.validate(full=True)
                return table, bool(json.loads(data)["truncated"])
            if kind == b"E":
                raise _error(json.loads(data), limits)
            pieces.append(data)
        raise EOFError

    def _frames(self, deadline: float, left: int) -> Iterator[tuple[bytes, bytes]]:
        while True:
            kind, data = self._frame(deadline, left)
            left -= len(data)
            yield kind, data

    def _frame(self, deadline: float, max_size: int) -> tuple[bytes, bytes]:
        """One frame. Raises TimeoutError, EOFError where the worker died or says more than it may."""
        kind, size = HEADER.unpack(self._receive(HEADER.size, deadline))
        if size > max_size:
            raise EOFError
        return kind, self._receive(size, deadline)

    def _receive(self, size: int, deadline: float) -> bytes:
        data = bytearray()
        while len(data) < size:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._channel.settimeout(left_s)
            piece = self._channel.recv(min(size - len(data), 1 << 20))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)


def _environment() -> dict[str, str]:
    """Where our modules are; one thread and few arenas, so that the address space is small. Nothing of ours beside."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return {
        **kept,
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }


def _error(answer: dict[str, str], limits: SqlLimits) -> QueryError:
    if answer["kind"] == "memory":
        return SqlLimitError("memory", f"the query needed more than {limits.memory_bytes >> 20} MiB; ask for less")
    return SqlError(answer["message"])


def _died(exit_code: int, limits: SqlLimits) -> SqlLimitError:
    if exit_code == -signal.SIGXCPU:
        return SqlLimitError("deadline", f"the query took more CPU time than {limits.deadline_s:g} s")
    return SqlLimitError(
        "memory",
        f"the query ended its process ({exit_code}): it needed more than {limits.memory_bytes >> 20} MiB, or is nested "
        "too deeply; ask for less",
    )
