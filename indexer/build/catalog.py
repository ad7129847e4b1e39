"""The catalog: runs, attempts, steps, sequences, segments, documents, shards and gaps, one small DuckDB file a generation.

Rules:

1. A catalog is written once, for a generation that nobody reads yet, and opened read-only ever after. It holds small
   tables; whatever grows with the run is in the generation's parts (`parts`), of which it has views.
2. `index/catalog.duckdb` opens with plain duckdb from any working directory: views name the parts by absolute paths, below
   the directory where the index was when it was published. Where it is somewhere else now, `SET VARIABLE kiseki_index =
   '…'` says where, and `kiseki index` publishes it anew. `IndexReader.catalog` always says where.
"""

import datetime
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path

import duckdb

from indexer.build.notes import losses_of_notes, notes_of_ranks, records_of_notes
from indexer.build.parts import PART_SCHEMAS
from indexer.metrics.imported import insert_imported_metrics
from indexer.storage.catalog import sql_path
from indexer.storage.generations import Generation
from indexer.storage.paths import IndexPaths
from indexer.storage.shard import ShardInfo
from train_hooks.export_format.lineage import StepInterval
from train_hooks.export_format.reading.reader import AttemptReader, RunReader, WriterLog
from train_hooks.export_format.reading.summaries import AttemptSummary, summarize

__all__ = ["TABLES", "AttemptState", "create_views", "write_catalog"]

TABLES = """
CREATE TABLE run_table (run_id VARCHAR, generation BIGINT, created TIMESTAMP, sequence_length BIGINT, token_dtype VARCHAR,
                        vocab_size BIGINT, tokenizer_sha256 VARCHAR, config JSON, versions JSON);
CREATE TABLE attempt_table (attempt INTEGER, parent_attempt INTEGER, resume_step BIGINT, num_writers INTEGER,
                            started TIMESTAMP, host VARCHAR, export_format_version INTEGER, barrier_step BIGINT,
                            first_step BIGINT, last_step BIGINT, canonical BOOLEAN, canonical_first_step BIGINT,
                            canonical_last_step BIGINT);
CREATE TABLE shard_table (shard VARCHAR, attempt INTEGER, first_step BIGINT, last_step BIGINT, num_sequences BIGINT,
                          num_segments BIGINT, num_tokens BIGINT, size_bytes BIGINT);
CREATE TABLE late_record_table (attempt INTEGER, global_step BIGINT, dp_rank INTEGER, kind VARCHAR, unix_time_s DOUBLE,
                                name VARCHAR, value DOUBLE, text VARCHAR);
CREATE TABLE late_loss_table (attempt INTEGER, global_step BIGINT, dp_rank INTEGER, microbatch INTEGER, slot INTEGER,
                              segment INTEGER, loss FLOAT);
CREATE TABLE imported_metric_table (attempt INTEGER, global_step BIGINT, unix_time_s DOUBLE, name VARCHAR, value DOUBLE,
                                    origin VARCHAR);
"""


class AttemptState:
    """An attempt as the export holds it now, from the seals of its files and the records of open ones."""

    def __init__(self, attempt: AttemptReader) -> None:
        self.attempt = attempt
        self.summary: AttemptSummary = summarize(attempt)
        self.committed: range = self.summary.committed

    @cached_property
    def num_notes(self) -> dict[int, int]:
        """How many notes each dp_rank has that has some."""
        return notes_of_ranks(self.attempt)

    def writers_with_notes(self) -> dict[int, WriterLog]:
        """The acknowledgement records of these dp_ranks, read now."""
        logs: dict[int, WriterLog] = {}
        for dp_rank in self.num_notes:
            logs |= self.attempt.writers(dp_rank)
        return logs

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
        connection.execute(TABLES)
        _insert_run(connection, generation, run)
        _insert_attempts(connection, generation, states, intervals)
        _insert_shards(connection, shards)
        _insert_late(connection, generation, states)
        create_views(connection, run.info.run_id, intervals, paths.index.resolve(), list(generation.parts))
        insert_imported_metrics(connection, paths)
        connection.execute("CHECKPOINT")


def create_views(
    connection: duckdb.DuckDBPyConnection,
    run_id: str,
    intervals: Sequence[StepInterval],
    index: Path,
    parts: Sequence[str],
) -> None:
    """All macros and views over the tables of a new catalog and the parts below `index`."""
    cases = [
        f"WHEN {interval.attempt} THEN global_step >= {interval.first_step}"
        + ("" if interval.last_step is None else f" AND global_step <= {interval.last_step}")
        for interval in intervals
    ]
    canonical = f"CASE attempt {' '.join(cases)} ELSE false END" if cases else "false"
    connection.execute(f"CREATE MACRO is_canonical(attempt, global_step) AS {canonical}")
    connection.execute(
        f"CREATE MACRO sequence_address(attempt, global_step, dp_rank, microbatch, slot) AS {_literal(run_id)} || '/a' || "
        "attempt || '/s' || global_step || '/r' || dp_rank || '/m' || microbatch || '/q' || slot"
    )
    directory = f"coalesce(getvariable('kiseki_index'), {_literal(sql_path(str(index)))})"
    for name in PART_SCHEMAS:
        files = ", ".join(_literal(f"/parts/{part}/{name}.parquet") for part in parts)
        connection.execute(
            f"CREATE VIEW stored_{name} AS FROM read_parquet(list_transform([{files}], "
            f"lambda file: {directory} || file), hive_partitioning = false)"
        )
    for name, is_of_row in (("sequences", "segment IS NULL"), ("segments", "segment IS NOT NULL")):
        connection.execute(_with_late_losses(connection, name, is_of_row))
    connection.execute("CREATE VIEW all_records AS FROM stored_records UNION ALL BY NAME FROM late_record_table")
    connection.execute((resources.files("indexer.build") / "catalog.sql").read_text(encoding="utf-8"))


def _with_late_losses(connection: duckdb.DuckDBPyConnection, name: str, which: str) -> str:
    """The view of stored rows with the losses that came late. Without any there is no join, which costs every question."""
    if connection.execute(f"SELECT 1 FROM late_loss_table WHERE {which} LIMIT 1").fetchone() is None:
        return f"CREATE VIEW all_{name} AS FROM stored_{name}"
    key = "attempt, global_step, dp_rank, microbatch, slot" + (", segment" if name == "segments" else "")
    return (
        f"CREATE VIEW all_{name} AS SELECT stored.* REPLACE (coalesce(stored.loss, late.loss) AS loss) "
        f"FROM stored_{name} stored LEFT JOIN (FROM late_loss_table WHERE {which}) late USING ({key})"
    )


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _time(unix_s: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).replace(tzinfo=None)


def _insert_run(connection: duckdb.DuckDBPyConnection, generation: Generation, run: RunReader) -> None:
    info = run.info
    connection.execute(
        "INSERT INTO run_table VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
    by_attempt: Mapping[int, StepInterval] = {interval.attempt: interval for interval in intervals}
    for state in states:
        info, interval = state.attempt.info, by_attempt.get(state.attempt.info.attempt)
        covered = generation.covered.get(info.attempt)
        connection.execute(
            "INSERT INTO attempt_table VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                info.attempt, info.parent_attempt, info.resume_step, info.num_writers, _time(info.started_unix_s),
                info.host, info.format_version, state.attempt.barrier_step(),
                info.resume_step + 1 if covered else None, covered, interval is not None,
                interval.first_step if interval else None, interval.last_step if interval else None,
            ],
        )  # fmt: skip


def _insert_shards(connection: duckdb.DuckDBPyConnection, shards: Sequence[ShardInfo]) -> None:
    rows = [
        [
            shard.name, shard.attempt, shard.first_step, shard.last_step, shard.num_sequences, shard.num_segments,
            shard.num_tokens, sum(file.size_bytes for file in shard.files),
        ]
        for shard in shards
    ]  # fmt: skip
    connection.executemany("INSERT INTO shard_table VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


def _insert_late(connection: duckdb.DuckDBPyConnection, generation: Generation, states: Sequence[AttemptState]) -> None:
    """Metrics and losses that came after their step."""
    for state in states:
        number, writers = state.attempt.info.attempt, state.writers_with_notes()
        for name, table in (
            ("late_record_table", records_of_notes(state.attempt, writers)),
            ("late_loss_table", losses_of_notes(state.attempt, writers)),
        ):
            if table.num_rows:
                connection.register("late", table)
                connection.execute(
                    f"INSERT INTO {name} SELECT $attempt, * FROM late WHERE global_step <= $covered",
                    {"attempt": number, "covered": generation.covered.get(number, 0)},
                )
                connection.unregister("late")
