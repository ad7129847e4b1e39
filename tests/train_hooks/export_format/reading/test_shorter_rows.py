"""Runs whose rows differ in length: every count is of the tokens that are there, and other runs stay as strict as they were."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.build.update import IndexOptions, update_index
from indexer.importers.llm_jp.exporter import export_dump
from indexer.reader import IndexReader
from tests.support.example_exports import LENGTH, begin_attempt, begin_run, committed_step, write_export, write_steps
from tests.support.export_maker import MadeStep, all_rows, make_attempt
from train_hooks.export_format import json_files
from train_hooks.export_format.acknowledgement import Ack, AckKind
from train_hooks.export_format.errors import RowError, RunError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.seals import read_seal
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.upkeep.repair import repair
from train_hooks.export_format.upkeep.status import status
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.attempts import RunSpec, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.row_builder import RowBuilder
from train_hooks.hook.export.staging import StagedMicrobatch, check_shapes


def num_tokens(run_dir: Path) -> int:
    return sum(len(row.tokens) for row in all_rows(run_dir))


def test_counts(tmp_path: Path) -> None:
    run = write_export(tmp_path / "run", shorter_rows=True)
    rows = all_rows(tmp_path / "run")
    assert {len(row.tokens) for row in rows} == {1, 3, 5, 7, 9, 11, 13, 15, LENGTH}
    assert len(rows) * LENGTH > num_tokens(tmp_path / "run")

    report = verify(run)
    assert report.findings == ()
    assert (report.num_rows, report.num_tokens) == (len(rows), num_tokens(tmp_path / "run"))
    assert status(run).num_tokens == report.num_tokens
    compact(run)
    assert verify(run).num_tokens == status(run).num_tokens == report.num_tokens
    assert export_dump(run, tmp_path / "dump").num_tokens == report.num_tokens
    updated = update_index(tmp_path / "run", IndexOptions(shard_tokens=2 * LENGTH))
    assert updated.num_tokens == report.num_tokens
    reader = IndexReader.open(tmp_path / "run")
    assert reader.sql("SELECT sum(num_tokens) AS n FROM sequences")[0]["n"] == report.num_tokens
    for row in rows:
        assert np.array_equal(reader.sequence(row.address).tokens, row.tokens)


def test_repair_counts_as_the_writer_would_have(tmp_path: Path) -> None:
    run = begin_run(tmp_path, shorter_rows=True)
    write_steps(tmp_path, run, begin_attempt(tmp_path, run), [1, 2, 3], close=False)
    assert [action.kind for action in repair(tmp_path)] == ["sealed"]

    seal = next((tmp_path / "export").rglob("*.seal.json"))
    assert read_seal(seal, seal.read_bytes()).num_tokens == num_tokens(tmp_path) < 12 * LENGTH
    assert verify(tmp_path).findings == ()


def test_a_count_that_the_rows_do_not_have_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(**fields: Any) -> Ack:
        return Ack(**{**fields, "num_tokens": 17 if fields["kind"] is AckKind.STEP else 0})

    monkeypatch.setattr("train_hooks.export_format.writing.writer.Ack", counted)
    run = begin_run(tmp_path, shorter_rows=True)
    write_steps(tmp_path, run, begin_attempt(tmp_path, run), [1])

    assert ["expected 17 tokens, found 8" in finding.message for finding in verify(tmp_path).findings] == [True]


def test_shards_are_planned_by_tokens(tmp_path: Path) -> None:
    """A shard takes sixteen times as many rows of one token as of sixteen."""
    steps = [
        MadeStep(microbatches={0: [np.full((4, length), step)]})
        for step in range(32)
        for length in (1 + 15 * (step > 15),)
    ]
    spec = RunSpec(sequence_length=16, vocab_size=99, config={}, shorter_rows=True)
    make_attempt(tmp_path, spec, steps)
    update_index(tmp_path, IndexOptions(shard_tokens=64))

    shards = [shard.info for shard in IndexReader.open(tmp_path).shards]
    assert [(info.num_sequences, info.num_tokens) for info in shards] == [(64, 64)] + [(4, 64)] * 16


def test_a_run_that_does_not_say_so_is_as_strict_as_ever(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    builder = RowBuilder(run, begin_attempt(tmp_path, run), 0, RunReader(tmp_path).secret())

    assert b'"shorter_rows": false' in (tmp_path / "export" / "run.json").read_bytes()
    with pytest.raises(RowError, match=r"shape \[micro-batch, 16\], found int64 \[2, 1\]; .* shorter_rows=True"):
        builder.frame(committed_step(1, 0, shorter_rows=True))


@pytest.mark.parametrize("length", [0, LENGTH + 1])
def test_no_row_is_empty_or_longer(tmp_path: Path, length: int) -> None:
    run = begin_run(tmp_path, shorter_rows=True)

    with pytest.raises(RowError, match=rf"\[micro-batch, 1 to 16\], found int64 \[2, {length}\]"):
        check_shapes(StagedMicrobatch(tokens=np.zeros((2, length), np.int64)), run)


@pytest.mark.parametrize("before", [False, True])
def test_a_run_stays_what_it_is(tmp_path: Path, before: bool) -> None:
    begin_run(tmp_path, shorter_rows=before)

    with pytest.raises(RunError, match=f"shorter_rows={not before}; attach with shorter_rows={before}"):
        begin_run(tmp_path, shorter_rows=not before)


def test_rows_of_another_length_are_found_in_a_strict_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer is asked past its own check, as a writer at fault would."""
    monkeypatch.setattr("train_hooks.hook.export.row_builder.check_shapes", lambda *_: None)
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run)
    writer = RankWriter(OsFileSystem(), RunReader(tmp_path).paths.attempt_dir(1), run, attempt, 0)
    builder = RowBuilder(run, attempt, 0, RunReader(tmp_path).secret())
    writer.append([builder.frame(committed_step(1, 0, shorter_rows=True))])
    writer.close()

    assert any("other tokens than the run can hold" in finding.message for finding in verify(tmp_path).findings)


def test_a_reader_of_older_formats_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_run(tmp_path, shorter_rows=True)
    monkeypatch.setattr(json_files, "FORMAT_VERSIONS", (1, 2))

    with pytest.raises(RunError, match="expected export format version 1 or 2, found 3; read it with a newer kiseki"):
        open_or_create_run(OsFileSystem(), tmp_path, RunSpec(sequence_length=LENGTH, vocab_size=300, config={}))
