"""Metrics and losses that came after their step was written: in the catalog, once, and not at the cost of all records."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from indexer.build.notes import notes_of_ranks
from indexer.build.update import IndexOptions, update_index
from indexer.reader import IndexReader
from indexer.sequence import describe_row
from tests.support.example_exports import begin_attempt, begin_run, write_steps
from tests.support.make_kept_exports import EXPORTS
from train_hooks import Segment
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import RowLoss
from train_hooks.export_format.upkeep.repair import repair
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.exporter import Exporter, ExporterOptions
from train_hooks.hook.export.staging import StagedMicrobatch

LENGTH = 16
SEGMENTS = tuple(
    Segment(start=start, length=8, source="web", document_id=f"d{start}", document_token_offset=0) for start in (0, 8)
)


def open_exporter(run_dir: Path) -> Exporter:
    """A writer that is alive."""
    file_system = OsFileSystem()
    spec = RunSpec(sequence_length=LENGTH, vocab_size=1000, run_id="late", config={})
    run = open_or_create_run(file_system, run_dir, spec)
    attempt = claim_attempt(file_system, run_dir, run, num_writers=1, resume=None, config={})
    writer = RankWriter(file_system, ExportPaths(run_dir).attempt_dir(attempt.attempt), run, attempt, 0)
    return Exporter(writer, run, attempt, 0, RunReader(run_dir).secret(), ExporterOptions(group_interval_s=0.0))


def commit(exporter: Exporter, step: int, loss: list[float | None] | None = None) -> None:
    """A step of two rows, of two segments each."""
    tokens = np.random.default_rng(step).integers(0, 1000, (2, LENGTH))
    exporter.stage(StagedMicrobatch(tokens=tokens, segments=[SEGMENTS, SEGMENTS], loss=loss))
    exporter.commit(step)
    exporter.checkpoint_barrier(step)


def test_late_losses_are_found_by_sql(tmp_path: Path) -> None:
    """Of rows and segments, each once: a row's own loss stays, and of two late ones the first counts."""
    run_dir = tmp_path / "run"
    exporter = open_exporter(run_dir)
    commit(exporter, 1)
    commit(exporter, 2, loss=[1.5, None])
    exporter.record_losses(
        1, [RowLoss(microbatch=0, slot=0, loss=3.5), RowLoss(microbatch=0, slot=1, loss=4.5, segments=(5.0, None))]
    )
    exporter.record_losses(
        2, [RowLoss(microbatch=0, slot=0, loss=9.0), RowLoss(microbatch=0, slot=1, loss=float("nan"))]
    )
    commit(exporter, 3)
    exporter.record_losses(1, [RowLoss(microbatch=0, slot=0, loss=7.0, segments=(8.0, 8.5))])
    exporter.record(1, {"late": 2.0})
    exporter.close()
    update_index(run_dir)
    reader = IndexReader.open(run_dir)
    rows = reader.sql("SELECT global_step, slot, loss FROM sequences ORDER BY ALL")
    assert [(row["global_step"], row["slot"]) for row in rows] == [
        (step, slot) for step in (1, 2, 3) for slot in (0, 1)
    ]
    losses = [row["loss"] for row in rows]
    assert losses[:3] == [3.5, 4.5, 1.5] and np.isnan(losses[3]) and losses[4:] == [None, None]
    segments = reader.sql("SELECT global_step, slot, segment, loss FROM segments ORDER BY ALL")
    assert len(segments) == 12
    known = {
        (row["global_step"], row["slot"], row["segment"]): row["loss"] for row in segments if row["loss"] is not None
    }
    assert known == {(1, 1, 0): 5.0, (1, 0, 0): 8.0, (1, 0, 1): 8.5}
    (late,) = reader.sql("SELECT value FROM step_metrics WHERE name = 'late'")
    assert late["value"] == 2.0
    shown = [describe_row(reader, reader.sequence(f"late/a1/s{step}/r0/m0/q{slot}"))["loss"] for step, slot in
             ((1, 0), (1, 1), (2, 0), (2, 1), (3, 0))]  # fmt: skip
    assert shown == [3.5, 4.5, 1.5, None, None], "JSON has no NaN"


def test_a_run_without_late_losses_pays_no_join(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    exporter = open_exporter(run_dir)
    commit(exporter, 1)
    commit(exporter, 2)
    exporter.record(1, {"late": 2.0})
    commit(exporter, 3)

    def plan(view: str) -> str:
        (row,) = IndexReader.open(run_dir).sql(f"EXPLAIN SELECT sum(loss) FROM {view}")
        return str(row["explain_value"]).lower()

    update_index(run_dir)
    assert "join" not in plan("sequences") and "join" not in plan("segments")
    exporter.record_losses(1, [RowLoss(microbatch=0, slot=0, loss=3.5)])
    exporter.close()
    assert update_index(run_dir).published
    assert "join" in plan("sequences") and "join" not in plan("segments")


def test_a_note_behind_the_last_step_is_indexed(tmp_path: Path) -> None:
    """No step comes after it, and the next indexing publishes it all the same; then nothing is left to do."""
    run_dir = tmp_path / "run"
    exporter = open_exporter(run_dir)
    commit(exporter, 1)
    assert update_index(run_dir).published and not update_index(run_dir).published
    exporter.record_losses(1, [RowLoss(microbatch=0, slot=1, loss=2.5)])
    exporter.record(1, {"loss": 2.0})
    exporter.close()
    report = update_index(run_dir)
    assert report.published and report.shards_built == 0
    reader = IndexReader.open(run_dir)
    assert [row["loss"] for row in reader.sql("SELECT loss FROM sequences ORDER BY slot")] == [None, 2.5]
    assert [row["loss"] for row in reader.sql("SELECT loss FROM steps")] == [2.0]
    assert not update_index(run_dir).published


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("state", ["growing", "sealed", "compacted", "taken-down", "repaired"])
def test_notes_are_counted_as_the_records_have_them(tmp_path: Path, version: int, state: str) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(EXPORTS / f"{version}-{'growing' if state == 'repaired' else state}", run_dir)
    if state == "repaired":
        assert {action.kind for action in repair(run_dir, assume_dead=True)} >= {"sealed"}
    for attempt in RunReader(run_dir).attempts():
        expected = Counter(
            {
                dp_rank: sum(len(file.acks.indices_of(AckKind.NOTE)) for file in writer.files)
                for dp_rank, writer in attempt.writers().items()
            }
        )
        assert notes_of_ranks(attempt) == +expected
        if attempt.info.attempt == 1:
            assert expected[0] == 1


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The acknowledgement records that were read since the list was cleared."""
    found: list[Path] = []
    read = OsFileSystem.read

    def spy(self: OsFileSystem, path: Path, start: int = 0, end: int | None = None) -> bytes:
        if ".acks" in path.name:
            found.append(path)
        return read(self, path, start, end)

    monkeypatch.setattr(OsFileSystem, "read", spy)
    return found


def test_sealed_files_are_planned_without_their_records(tmp_path: Path, reads: list[Path]) -> None:
    """Nothing new: no records are read. A new attempt: those of the new attempt alone."""
    run_dir, options = tmp_path / "run", IndexOptions(shard_tokens=100)
    run = begin_run(run_dir)
    first = begin_attempt(run_dir, run, num_writers=2)
    write_steps(run_dir, run, first, range(1, 6), roll_size_bytes=6000)
    assert update_index(run_dir, options).published
    assert len({path.name for path in reads}) == len(list(run_dir.rglob("*.acks"))) > 2, "shards are built of records"
    reads.clear()
    assert not update_index(run_dir, options).published
    assert reads == []
    token = ResumeToken(run_id=run.run_id, attempt=1, global_step=3)
    second = begin_attempt(run_dir, run, num_writers=2, resume=token)
    write_steps(run_dir, run, second, range(4, 7))
    reads.clear()
    assert update_index(run_dir, options).published
    assert {path.parent.name for path in reads} == {"a000002"}
    (row,) = IndexReader.open(run_dir).sql("SELECT count(*) AS num FROM sequences")
    assert row["num"] == 64
