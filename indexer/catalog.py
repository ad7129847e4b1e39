"""The catalog: runs, attempts, steps, sequences, segments, documents, shards and gaps in one DuckDB file a generation.

`index/catalog.duckdb` opens with plain duckdb; `catalog.sql` holds the tables and views. A catalog is written once, for
a generation that nobody reads yet, and opened read-only ever after. Sequences and segments of shards that the catalog
before has as well are copied from it.
"""

import datetime
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import duckdb
import pyarrow as pa

from indexer.generations import Generation
from indexer.paths import IndexPaths
from indexer.shard import ShardInfo
from train_hooks.export_format.lineage import StepInterval
from train_hooks.export_format.reader import AttemptReader, RunReader, WriterLog

__all__ = ["AttemptState", "write_catalog"]

_SEQUENCE_COLUMNS = (
    "ordinal, attempt, global_step, dp_rank, microbatch, slot, sample_index, status, loss, leaf, num_bytes // $width"
)
_SEGMENT_COLUMNS = "ordinal, segment, start, length, source, document_id, document_token_offset"


class AttemptState:
    """An attempt as the export holds it now, read once for one indexing."""

    def __init__(self, attempt: AttemptReader) -> None:
        self.attempt = attempt
        self.writers: dict[int, WriterLog] = attempt.writers()
        self.committed: list[int] = attempt.committed_steps(self.writers)

    @property
    def last_step(self) -> int | None:
        """The newest committed step."""
        return self.committed[-1] if self.committed else None


def write_catalog(
    paths: IndexPaths,
    generation: Generation,
    run: RunReader,
    states: Sequence[AttemptState],
    shards: Sequence[ShardInfo],
    intervals: Sequence[StepInterval],
) -> None:
    """Write the catalog of `generation`, which is not yet published."""
    path = paths.catalog(generation.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with duckdb.connect(str(path)) as connection:
        connection.execute((resources.files("indexer") / "catalog.sql").read_text(encoding="utf-8"))
        _insert_run(connection, generation, run)
        _insert_attempts(connection, generation, states, intervals)
        _insert_steps(connection, generation, states)
        for shard in shards:
            _insert_shard(connection, paths, shard, itemsize=2 if run.info.token_dtype == "uint16" else 4)
        connection.execute("CHECKPOINT")


def _time(unix_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).replace(tzinfo=None)


def _insert_run(connection: duckdb.DuckDBPyConnection, generation: Generation, run: RunReader) -> None:
    info = run.info
    connection.execute(
        "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            info.run_id, generation.number, _time(info.created_unix_s), info.sequence_length, info.token_dtype,
            info.vocab_size, info.tokenizer_sha256, json.dumps(info.config), json.dumps(info.versions),
        ],
    )  # fmt: skip


def _insert_attempts(
    connection: duckdb.DuckDBPyConnection,
    generation: Generation,
    states: Sequence[AttemptState],
    intervals: Sequence[StepInterval],
) -> None:
    by_attempt = {interval.attempt: interval for interval in intervals}
    for state in states:
        info, interval = state.attempt.info, by_attempt.get(state.attempt.info.attempt)
        covered = generation.covered.get(info.attempt)
        connection.execute(
            "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                info.attempt, info.parent_attempt, info.resume_step, info.num_writers, _time(info.started_unix_s),
                info.host, info.resume_step + 1 if covered else None, covered, interval is not None,
                interval.first_step if interval else None, interval.last_step if interval else None,
            ],
        )  # fmt: skip


def _insert_steps(
    connection: duckdb.DuckDBPyConnection, generation: Generation, states: Sequence[AttemptState]
) -> None:
    statuses: list[tuple[int, int, str]] = []
    metrics: list[tuple[int, int, int, float, str, float]] = []
    gaps: list[tuple[int, int, int, int, str | None]] = []
    for state in states:
        number = state.attempt.info.attempt
        last = generation.covered.get(number, 0)
        of_step = state.attempt.step_status(state.writers)
        statuses += [(number, step, of_step[step].value) for step in state.committed if step <= last]
        for dp_rank, record in state.attempt.step_records(state.writers):
            if record.kind == "gap":
                lost = int(record.values.get("num_rows", 0))
                gaps.append((number, record.global_step, dp_rank, lost, record.text))
            elif record.global_step <= last:
                metrics += [
                    (number, record.global_step, dp_rank, record.unix_time_s, name, value)
                    for name, value in record.values.items()
                ]
    _insert_many(connection, "step_status", statuses)
    _insert_many(connection, "step_metrics", metrics)
    _insert_many(connection, "gaps", gaps)


def _insert_many(connection: duckdb.DuckDBPyConnection, table: str, rows: Iterable[tuple[object, ...]]) -> None:
    columns = list(zip(*rows, strict=True))
    if columns:
        names = [name for name, *_ in connection.execute(f"DESCRIBE {table}").fetchall()]
        incoming = pa.table({name: list(column) for name, column in zip(names, columns, strict=True)})
        connection.register("incoming", incoming)
        connection.execute(f"INSERT INTO {table} SELECT * FROM incoming")
        connection.unregister("incoming")


def _insert_shard(connection: duckdb.DuckDBPyConnection, paths: IndexPaths, shard: ShardInfo, itemsize: int) -> None:
    size = sum(file.size_bytes for file in shard.files)
    connection.execute(
        "INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            shard.name, shard.attempt, shard.first_step, shard.last_step, shard.num_sequences, shard.num_segments,
            shard.num_tokens, size,
        ],
    )  # fmt: skip
    directory: Path = paths.shard_dir(shard.name)
    connection.execute(
        f"INSERT INTO all_sequences SELECT $shard, {_SEQUENCE_COLUMNS} FROM read_parquet($file)",
        {"shard": shard.name, "file": str(directory / "sequences.parquet"), "width": itemsize},
    )
    connection.execute(
        f"INSERT INTO all_segments SELECT $shard, {_SEGMENT_COLUMNS} FROM read_parquet($file)",
        {"shard": shard.name, "file": str(directory / "segments.parquet")},
    )
