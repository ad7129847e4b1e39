"""A run that is indexed step by step has the catalog of one that is indexed at its end, in few parts."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from indexer.build import parts
from indexer.build.planning import FANOUT
from indexer.build.update import IndexOptions, update_index
from indexer.reader import IndexReader
from tests.indexer.build.test_catalog import contents
from train_hooks import Segment
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.writing.attempts import RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.exporter import Exporter, ExporterOptions
from train_hooks.hook.export.staging import StagedMicrobatch

LENGTH, STEPS = 120, 14


def open_exporter(run_dir: Path) -> Exporter:
    """A writer that is alive."""
    file_system = OsFileSystem()
    run = open_or_create_run(
        file_system, run_dir, RunSpec(sequence_length=LENGTH, vocab_size=1000, run_id="r", config={})
    )
    attempt = claim_attempt(file_system, run_dir, run, num_writers=1, resume=None, config={})
    writer = RankWriter(file_system, ExportPaths(run_dir).attempt_dir(attempt.attempt), run, attempt, 0)
    return Exporter(writer, run, attempt, 0, RunReader(run_dir).secret(), ExporterOptions(group_interval_s=0.0))


def check_nan(reader: IndexReader) -> None:
    """Statistics of row groups hide none of them."""
    for view in ("sequences", "segments"):
        (found,) = reader.sql(f"SELECT count(*) AS num, max(global_step) AS last FROM {view} WHERE isnan(loss)")
        assert (found["num"], found["last"]) == (STEPS, STEPS)
        top = reader.sql(f"SELECT loss FROM {view} ORDER BY loss DESC LIMIT 20")
        assert [math.isnan(row["loss"]) for row in top] == [True] * STEPS + [False] * (20 - STEPS)
    assert len(reader.sql("SELECT * FROM step_metrics WHERE isnan(value)")) == STEPS


def test_step_by_step_is_as_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    chunks = rng.integers(0, 1000, (6, 60))
    followed, options = tmp_path / "followed", IndexOptions(shard_tokens=LENGTH * 24)
    exporter = open_exporter(followed)
    for step in range(1, STEPS + 1):
        rows = np.array([np.concatenate(chunks[rng.integers(0, 6, 2)]) for _ in range(2)])
        segments = [
            (Segment(start=0, length=LENGTH, source="s", document_id=f"d{step % 3}", document_token_offset=0),)
        ] * 2
        losses = [step / 10, float("nan")]
        exporter.stage(
            StagedMicrobatch(tokens=rows, segments=segments, loss=losses, segment_losses=[[loss] for loss in losses])
        )
        exporter.commit(step, metrics={"loss": 1 / step, "grad_norm": float("inf"), "bad": float("nan")})
        exporter.checkpoint_barrier(step)
        assert update_index(followed, options).published
        if step == 5:
            exporter.record(2, {"late": 7.0})
    exporter.close()
    update_index(followed, options)
    reader = IndexReader.open(followed)
    assert len(reader.generation.parts) <= FANOUT + 1 < STEPS
    check_nan(reader)
    step_by_step = contents(followed)
    (followed / "index").rename(tmp_path / "index-before")
    update_index(followed, options)
    assert len(IndexReader.open(followed).generation.parts) <= 2
    check_nan(IndexReader.open(followed))
    at_once = contents(followed)
    assert repr(step_by_step) == repr(at_once)  # NaN is not equal to itself
    shares = [row["seen_share"] for row in at_once["sequences"]]
    assert sum(share > 0 for share in shares) > STEPS and shares.count(0.0) >= 2
    late = [row for row in at_once["step_metrics"] if row["name"] == "late"]
    assert [(row["global_step"], row["value"]) for row in late] == [(2, 7.0)]


def test_row_groups_are_large_when_parts_are_joined(tmp_path: Path) -> None:
    schema = parts.PART_SCHEMAS["steps"]
    tables = [
        pa.table(
            {
                "attempt": np.full(1000, 1, np.int32),
                "global_step": np.arange(number * 1000, number * 1000 + 1000),
                "status": ["applied"] * 1000,
                "num_sequences": np.ones(1000, np.int64),
                "num_tokens": np.ones(1000, np.int64),
            },
            schema=schema,
        )
        for number in range(300)
    ]
    parts.write_sorted(tmp_path / "steps.parquet", schema, iter(tables))
    with pq.ParquetFile(tmp_path / "steps.parquet") as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        assert sizes == [parts.GROUP_ROWS, 300_000 - parts.GROUP_ROWS]
        assert file.read().column("global_step").to_pylist() == list(range(300_000))
