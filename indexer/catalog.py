"""The catalog: runs, attempts, steps, sequences, segments, documents, shards and gaps in one DuckDB file a generation.

`index/catalog.duckdb` opens with plain duckdb; `catalog.sql` holds the tables and views. A catalog is written once, for
a generation that nobody reads yet, and opened read-only ever after. It begins as a copy of the one before; rows are keyed
by address, so merging shards changes none of them.
"""

import datetime
import json
import shutil
from collections.abc import Mapping, Sequence
from importlib import resources

import duckdb
import numpy as np

from indexer.generations import Generation
from indexer.ingest import late_records
from indexer.paths import IndexPaths
from indexer.shard import ShardInfo
from train_hooks.export_format.lineage import StepInterval
from train_hooks.export_format.reader import AttemptReader, RunReader, WriterLog

__all__ = ["AttemptState", "write_catalog"]


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
    before: Generation | None,
    generation: Generation,
    run: RunReader,
    states: Sequence[AttemptState],
    shards: Sequence[ShardInfo],
    intervals: Sequence[StepInterval],
) -> None:
    """Write the catalog of `generation`, which is not yet published: that of the one before, and the steps since."""
    path = paths.catalog(generation.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    covered: Mapping[int, int] = {}
    if before is not None and paths.catalog(before.number).exists():
        shutil.copyfile(paths.catalog(before.number), path)
        covered = before.covered
    with duckdb.connect(str(path)) as connection:
        if not covered:
            connection.execute((resources.files("indexer") / "catalog.sql").read_text(encoding="utf-8"))
        for table in ("runs", "attempts", "shards"):
            connection.execute(f"DELETE FROM {table}")
        _insert_run(connection, generation, run)
        _insert_attempts(connection, generation, states, intervals)
        for shard in shards:
            _insert_shard(connection, paths, shard, covered.get(shard.attempt, 0), run.info.token_dtype)
        _insert_late_records(connection, generation, states)
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


def _insert_shard(
    connection: duckdb.DuckDBPyConnection, paths: IndexPaths, shard: ShardInfo, covered: int, token_dtype: str
) -> None:
    size = sum(file.size_bytes for file in shard.files)
    connection.execute(
        "INSERT INTO shards VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            shard.name, shard.attempt, shard.first_step, shard.last_step, shard.num_sequences, shard.num_segments,
            shard.num_tokens, size,
        ],
    )  # fmt: skip
    if shard.last_step <= covered:
        return
    directory = paths.shard_dir(shard.name)
    files = {name: str(directory / f"{name}.parquet") for name in ("sequences", "segments", "records", "statuses")}
    values = {"attempt": shard.attempt, "covered": covered}
    connection.execute(
        "INSERT INTO step_status SELECT $attempt, global_step, status FROM read_parquet($file) WHERE global_step > $covered",
        {**values, "file": files["statuses"]},
    )
    connection.execute(
        "INSERT INTO step_records SELECT $attempt, *, false FROM read_parquet($file) WHERE global_step > $covered",
        {**values, "file": files["records"]},
    )
    connection.execute(
        """INSERT INTO all_sequences
           SELECT attempt, global_step, dp_rank, microbatch, slot, sample_index, status, loss, leaf, num_bytes // $width
           FROM read_parquet($file) WHERE global_step > $covered""",
        {"covered": covered, "file": files["sequences"], "width": np.dtype(token_dtype).itemsize},
    )
    connection.execute(
        """INSERT INTO all_segments
           SELECT q.attempt, q.global_step, q.dp_rank, q.microbatch, q.slot, g.segment, g.start, g.length, g.source,
                  g.document_id, g.document_token_offset
           FROM read_parquet($segments) g JOIN read_parquet($sequences) q USING (ordinal)
           WHERE q.global_step > $covered ORDER BY g.ordinal, g.segment""",
        {"covered": covered, "segments": files["segments"], "sequences": files["sequences"]},
    )


def _insert_late_records(
    connection: duckdb.DuckDBPyConnection, generation: Generation, states: Sequence[AttemptState]
) -> None:
    """Metrics that came after their step, read anew each time: they are few."""
    connection.execute("DELETE FROM step_records WHERE late")
    for state in states:
        number = state.attempt.info.attempt
        records = late_records(state.attempt, state.writers)
        if records.num_rows:
            connection.register("late_records", records)
            connection.execute(
                "INSERT INTO step_records SELECT $attempt, *, true FROM late_records WHERE global_step <= $covered",
                {"attempt": number, "covered": generation.covered.get(number, 0)},
            )
            connection.unregister("late_records")
