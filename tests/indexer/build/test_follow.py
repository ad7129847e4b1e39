"""Following a run that grows: new steps are published while the writer goes on, and small shards are merged."""

import shutil
import threading
import time
from pathlib import Path

import numpy as np

from indexer.build.follow import follow
from indexer.build.planning import FANOUT, merge_ranges
from indexer.build.update import IndexOptions, IndexReport, update_index
from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from indexer.storage.step_range import StepRange
from indexer.trace.counts import count_of_ngram
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.writing.attempts import RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.exporter import Exporter, ExporterOptions
from train_hooks.hook.export.staging import StagedMicrobatch

LENGTH = 16


def open_exporter(run_dir: Path) -> Exporter:
    """A writer that is alive: its file stays open."""
    file_system = OsFileSystem()
    run = open_or_create_run(file_system, run_dir, RunSpec(sequence_length=LENGTH, vocab_size=1000, config={}))
    attempt = claim_attempt(file_system, run_dir, run, num_writers=1, resume=None, config={})
    writer = RankWriter(file_system, ExportPaths(run_dir).attempt_dir(attempt.attempt), run, attempt, 0)
    return Exporter(writer, run, attempt, 0, RunReader(run_dir).secret(), ExporterOptions(group_interval_s=0.0))


def test_new_steps_are_published_while_training_runs(tmp_path: Path) -> None:
    run_dir, stop = tmp_path / "run", threading.Event()
    published: list[IndexReport] = []
    options = IndexOptions(shard_tokens=LENGTH * 8)

    def work() -> None:
        published.extend(follow(run_dir, options, interval_s=0.05, stop=stop))

    thread = threading.Thread(target=work)
    thread.start()  # before there is a run at all
    try:
        rng, exporter = np.random.default_rng(0), None
        time.sleep(0.2)
        exporter = open_exporter(run_dir)
        for step in range(1, 7):
            tokens = rng.integers(0, 1000, (2, LENGTH))
            exporter.stage(StagedMicrobatch(tokens=tokens))
            exporter.commit(step, metrics={"loss": float(step)})
            exporter.checkpoint_barrier(step)
            _wait_until_covered(run_dir, step)
            assert count_of_ngram(IndexReader.open(run_dir), tokens[1].tolist(), Selection()).count == 1
        exporter.record(2, {"late": 7.0})
        exporter.close()
    finally:
        stop.set()
        thread.join()
    assert len(published) >= 5 and published[-1].last_step == 6
    update_index(run_dir, options)
    rows = IndexReader.open(run_dir).sql("SELECT global_step, loss FROM steps ORDER BY 1")
    assert rows == [{"global_step": step, "loss": float(step)} for step in range(1, 7)]


def _wait_until_covered(run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if (run_dir / "index" / "CURRENT").exists() and IndexReader.open(run_dir).generation.covered[1] >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not published in 30 s")


def test_a_run_of_any_length_has_few_shards() -> None:
    """One step at a time, as a follower sees them; each plan is what the one before left, and one step."""
    max_size, built = 512, 0
    ranges: list[StepRange] = []
    for step in range(1, 3000):
        before = set(ranges)
        ranges = merge_ranges([*ranges, StepRange(attempt=1, first_step=step, last_step=step, size=2)], max_size)
        built += sum(steps.size for steps in ranges if steps not in before)
        assert [steps.first_step for steps in ranges[1:]] == [steps.last_step + 1 for steps in ranges[:-1]]
        assert (ranges[0].first_step, ranges[-1].last_step) == (1, step)
        assert all(steps.size <= max_size for steps in ranges)
        full = sum(steps.size > max_size // 2 for steps in ranges)
        assert len(ranges) - full <= (FANOUT - 1) * 4
    assert full >= 0.8 * 3000 * 2 / max_size
    assert len(ranges) <= 2 * 3000 * 2 / max_size + (FANOUT - 1) * 4
    assert built <= 2 * 3000 * 6, "each row is built once a tier"


def test_jobs_and_memory_limit(tmp_path: Path) -> None:
    with open_exporter(tmp_path / "run") as exporter:
        rng = np.random.default_rng(1)
        for step in range(1, 9):
            exporter.stage(StagedMicrobatch(tokens=rng.integers(0, 1000, (4, LENGTH))))
            exporter.commit(step)
    report = update_index(tmp_path / "run", IndexOptions(shard_tokens=LENGTH * 8, jobs=2))
    assert (report.num_sequences, report.shards_built) == (32, 4)
    for rows, jobs, expected in (
        (24, 1, [24, 8]),
        (24, 2, [16, 16]),
        (24, 3, [12, 12, 8]),
        (20, 2, [16, 16]),
        (1000, 2, [32]),
    ):
        shutil.rmtree(tmp_path / "run" / "index")
        update_index(tmp_path / "run", IndexOptions(shard_tokens=LENGTH * rows, jobs=jobs))
        assert [shard.info.num_sequences for shard in IndexReader.open(tmp_path / "run").shards] == expected
    fitted = IndexOptions(shard_tokens=64_000_000, jobs=4, memory_limit_bytes=6 << 30).fitted()
    assert fitted.jobs * fitted.shard_tokens * 40 <= 6 << 30
