"""The process that runs strangers' SQL: `python -m indexer.sql.worker FD < SETTINGS`, started by sql_sandbox alone.

It gives up other files, opens the catalog read-only, locks DuckDB's configuration, gives up further resources
(sql_confinement), and then answers one statement after the other on the socket FD. A frame is a kind of one byte, a length
of four, and that many bytes:

    to the worker    Q  JSON: sql, cpu_s
    from the worker  R  JSON: landlock; it is ready
                     A  a piece of the Arrow IPC stream
                     D  JSON: truncated; the answer is whole
                     E  JSON: kind (start, refused, sql, memory), message; it ends after `start` and `memory`
"""

import bisect
import json
import socket
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from indexer.sql.confinement import allow_cpu_s, give_up_files, give_up_resources
from indexer.sql.statement import StatementRefused, check_statement

HEADER = struct.Struct("<cI")
BATCH_ROWS = 2048
SYSTEM_FILES = (  # what DuckDB asks its machine about: CPUs and memory
    Path("/proc/self/cgroup"),
    Path("/proc/self/statm"),
    Path("/proc/meminfo"),
    Path("/sys/devices/system/cpu"),
    Path("/sys/fs/cgroup"),
)
OUT_OF_MEMORY = (MemoryError, duckdb.OutOfMemoryException, duckdb.FatalException, duckdb.InternalException)


def main() -> None:
    """Serve until the parent closes the socket."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    settings = json.load(sys.stdin)
    try:
        has_landlock = give_up_files(
            [*map(Path, [settings["catalog"], *settings["files"]]), *filter(Path.exists, SYSTEM_FILES)]
        )
        connection = open_locked(settings)
        _warm_up(connection)
        give_up_resources(settings["memory_bytes"])
    except (duckdb.Error, OSError, StatementRefused) as error:
        _send_error(channel, "start", str(error))
        sys.exit(1)
    send_frame(channel, b"R", json.dumps({"landlock": has_landlock}).encode())
    while (frame := receive_frame(channel)) is not None:
        question = json.loads(frame[1])
        allow_cpu_s(question["cpu_s"])
        with connection.cursor() as cursor:
            cursor.execute("SET VARIABLE kiseki_index = $1", [settings["index"]])
            _answer(channel, cursor, question["sql"], settings)


def open_locked(settings: Mapping[str, Any]) -> duckdb.DuckDBPyConnection:
    """The catalog, read-only, with a configuration that no statement can change.

    DuckDB can open the Parquet files that its views read, and no others.
    """
    connection = duckdb.connect(settings["catalog"], read_only=True, config={"threads": 1})
    connection.execute("SET python_enable_replacements = false")
    connection.execute(f"SET allowed_paths = [{', '.join(_quoted(file) for file in settings['files'])}]")
    for name, value in (
        ("memory_limit", f"'{settings['memory_bytes'] * 6 // 10} B'"),
        ("temp_directory", "''"),
        ("autoinstall_known_extensions", "false"),
        ("autoload_known_extensions", "false"),
        ("allow_community_extensions", "false"),
        ("enable_external_access", "false"),
        ("lock_configuration", "true"),
    ):
        connection.execute(f"SET {name} = {value}")
    return connection


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _warm_up(connection: duckdb.DuckDBPyConnection) -> None:
    """Load what is loaded at first use, while there are no limits yet."""
    for sql in ("SELECT now()::VARCHAR, 1.5::DECIMAL(9, 2) AS d, DATE '2000-01-01' AS t", "SHOW TABLES"):
        check_statement(connection, sql)
        _write(connection.sql(sql), pa.BufferOutputStream(), 10, 1 << 20)
    json.loads(json.dumps({"text": "é", "number": 1.5}))


def _answer(channel: socket.socket, cursor: duckdb.DuckDBPyConnection, sql: str, settings: Mapping[str, Any]) -> None:
    try:
        check_statement(cursor, sql)
        truncated = _write(cursor.sql(sql), _Pieces(channel), settings["max_rows"], settings["max_bytes"])
        send_frame(channel, b"D", json.dumps({"truncated": truncated}).encode())
    except StatementRefused as error:
        _send_error(channel, "refused", str(error))
    except OUT_OF_MEMORY as error:
        _send_error(channel, "memory", str(error))
        sys.exit(1)
    except (duckdb.Error, pa.ArrowException, RuntimeError, ValueError) as error:
        message = str(error).replace(settings["index"], "index")  # where a run lies is nobody's business
        _send_error(channel, "memory" if "bad_alloc" in message else "sql", message)


def _send_error(channel: socket.socket, kind: str, message: str) -> None:
    send_frame(channel, b"E", json.dumps({"kind": kind, "message": message[:4000]}).encode())


def _write(relation: duckdb.DuckDBPyRelation, sink: Any, max_rows: int, max_bytes: int) -> bool:
    """Write rows as an IPC stream until a cap is reached; whether rows were left out."""
    reader = relation.to_arrow_reader(BATCH_ROWS)
    with pa.ipc.new_stream(sink, reader.schema) as writer:
        for batch in reader:
            fitting = _num_fitting(batch, max_rows, max_bytes)
            kept = batch.slice(0, fitting)
            writer.write_batch(kept)
            max_rows, max_bytes = max_rows - fitting, max_bytes - kept.nbytes
            if fitting < batch.num_rows:
                return True
    return False


def _num_fitting(batch: pa.RecordBatch, max_rows: int, max_bytes: int) -> int:
    """How many of the batch's first rows keep both caps."""
    most = min(int(batch.num_rows), max_rows)
    if batch.slice(0, most).nbytes <= max_bytes:
        return most
    sizes = range(1, most + 1)
    return bisect.bisect_right(sizes, max_bytes, key=lambda num: int(batch.slice(0, num).nbytes))


class _Pieces:
    """A file of which every write is a frame."""

    closed = False

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def write(self, data: Any) -> int:
        piece = memoryview(data).cast("B")
        send_frame(self._channel, b"A", piece)
        return len(piece)

    def flush(self) -> None:
        """Nothing is kept back."""


def send_frame(channel: socket.socket, kind: bytes, data: bytes | memoryview = b"") -> None:
    """Send one frame. Raises OSError where the other side is gone."""
    channel.sendall(HEADER.pack(kind, len(data)))
    channel.sendall(data)


def receive_frame(channel: socket.socket) -> tuple[bytes, bytes] | None:
    """One frame, or None where the other side closed."""
    header = _receive(channel, HEADER.size)
    if header is None:
        return None
    kind, size = HEADER.unpack(header)
    data = _receive(channel, size)
    return None if data is None else (kind, data)


def _receive(channel: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(min(size - len(data), 1 << 20))
        if not piece:
            return None
        data += piece
    return bytes(data)


if __name__ == "__main__":
    main()
