"""Repair touches dead writers alone and cuts nothing that was acknowledged; status tells who is alive."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.example_exports import begin_attempt, begin_run, committed_step, write_export, write_steps
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.json_files import write_attempt_info
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import AttemptInfo
from train_hooks.export_format.upkeep.repair import repair
from train_hooks.export_format.upkeep.status import status
from train_hooks.export_format.verify.findings import Severity
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.committed_step import as_gap
from train_hooks.hook.export.row_builder import RowBuilder


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """Two writers that died: one with a torn tail."""
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run, num_writers=2)
    write_steps(tmp_path, run, attempt, [1, 2], roll_size_bytes=3000, close=False)
    directory = ExportPaths(tmp_path).attempt_dir(1)
    for name in ("rows-r00001-00001.arrows.inprogress", "rows-r00001-00001.acks.inprogress"):
        with (directory / name).open("ab") as file:
            file.write(b"torn")
    return tmp_path


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[RankWriter]:
    """A writer that lives, with one acknowledged step."""
    run = begin_run(tmp_path)
    info = begin_attempt(tmp_path, run)
    writer = RankWriter(OsFileSystem(), ExportPaths(tmp_path).attempt_dir(1), run, info, 0)
    writer.append([RowBuilder(run, info, 0, RunReader(tmp_path).secret()).frame(committed_step(1, 0))])
    yield writer
    writer.abandon()


def test_a_crashed_export_is_sound_and_becomes_whole(crashed: Path) -> None:
    before = verify(crashed)
    actions = repair(crashed)
    after = verify(crashed)

    assert before.exit_code == 0
    assert {finding.severity for finding in before.findings} == {Severity.NOTE}
    assert [(action.kind, Path(action.path).name) for action in actions] == [
        ("sealed", "rows-r00000-00001.seal.json"),
        ("cut", "rows-r00001-00001.acks.inprogress"),
        ("cut", "rows-r00001-00001.arrows.inprogress"),
        ("sealed", "rows-r00001-00001.seal.json"),
    ]
    assert "4 bytes" in actions[1].message
    assert after.findings == ()
    assert after.num_rows == before.num_rows == 16
    assert repair(crashed) == []


def test_a_repair_can_cut_without_sealing(crashed: Path) -> None:
    assert [action.kind for action in repair(crashed, seal=False)] == ["cut", "cut"]
    assert repair(crashed, seal=False) == []


def test_a_live_writer_is_left_alone(tmp_path: Path, writer: RankWriter) -> None:
    (action,) = repair(tmp_path, assume_dead=True)

    assert (action.kind, action.message) == ("left", "the writer of dp_rank 0 is running")
    writer.close()
    assert repair(tmp_path) == []


def test_an_attempt_of_another_host_is_left_to_its_operator(crashed: Path) -> None:
    paths = ExportPaths(crashed)
    (attempt,) = RunReader(crashed).attempts()
    paths.attempt_json(1).unlink()
    elsewhere: AttemptInfo = dataclasses.replace(attempt.info, host="elsewhere:7")
    write_attempt_info(OsFileSystem(), paths, elsewhere)

    assert {action.kind for action in repair(crashed)} == {"left"}
    assert status(RunReader(crashed)).attempts[0].state == "open"
    assert "sealed" in {action.kind for action in repair(crashed, assume_dead=True)}


def test_a_damaged_file_is_not_sealed(crashed: Path) -> None:
    path = ExportPaths(crashed).attempt_dir(1) / "rows-r00001-00001.arrows.inprogress"
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    actions = repair(crashed)

    assert [action.kind for action in actions] == ["sealed", "left"]
    assert "do not match their hash" in actions[1].message
    assert path.read_bytes() == content


def test_status_counts(tmp_path: Path) -> None:
    found = status(write_export(tmp_path))
    first, second = found.attempts

    assert (found.canonical_attempt, found.newest_committed_step, found.num_unsealed) == (2, 6, 0)
    assert (first.num_steps, first.num_superseded, first.num_rows, first.num_tokens) == (5, 2, 40, 640)
    assert (second.parent_attempt, second.resume_step, second.num_superseded) == (1, 3, 0)
    assert {item.state for item in found.attempts} == {"closed"}
    assert found.lag_s is None


def test_status_tells_the_living_from_the_dead(tmp_path: Path, writer: RankWriter) -> None:
    alive = status(RunReader(tmp_path))
    writer.abandon()
    dead = status(RunReader(tmp_path))

    assert (alive.attempts[0].state, dead.attempts[0].state) == ("live", "crashed")
    assert alive.lag_s is not None
    assert 0 <= alive.lag_s < 60
    assert dead.lag_s is None
    assert dead.num_unsealed == 1


def test_gaps_are_counted_and_make_an_export_incomplete(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    info = begin_attempt(tmp_path, run)
    writer = RankWriter(OsFileSystem(), ExportPaths(tmp_path).attempt_dir(1), run, info, 0)
    builder = RowBuilder(run, info, 0, RunReader(tmp_path).secret())
    writer.append([builder.frame(committed_step(1, 0)), builder.frame(as_gap(committed_step(2, 0), "queue full"))])
    writer.close()
    report = verify(tmp_path)

    assert status(RunReader(tmp_path)).num_gaps == 1
    assert report.exit_code == 3
    assert [(finding.severity, finding.step) for finding in report.findings] == [(Severity.INCOMPLETE, 2)]
    assert "queue full" in report.findings[0].message


def test_writers_that_differ_make_an_export_incomplete(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    info = begin_attempt(tmp_path, run, num_writers=2)
    for dp_rank, num_slots in enumerate((2, 1)):
        writer = RankWriter(OsFileSystem(), ExportPaths(tmp_path).attempt_dir(1), run, info, dp_rank)
        builder = RowBuilder(run, info, dp_rank, RunReader(tmp_path).secret())
        writer.append([builder.frame(committed_step(1, dp_rank, num_slots=num_slots))])
        writer.close()

    (finding,) = verify(tmp_path).findings
    assert (finding.severity, finding.step) == (Severity.INCOMPLETE, 1)
    assert "different numbers of rows" in finding.message


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    verify(write_export(tmp_path), progress=lambda done, total: told.append((done, total)))

    assert told
    assert all(0 < done <= total for done, total in told)
    assert told == sorted(told)


def test_a_last_step_that_is_not_whole_is_a_note(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    info = begin_attempt(tmp_path, run, num_writers=2)
    for dp_rank, steps in enumerate(([1, 2], [1])):
        writer = RankWriter(OsFileSystem(), ExportPaths(tmp_path).attempt_dir(1), run, info, dp_rank)
        builder = RowBuilder(run, info, dp_rank, RunReader(tmp_path).secret())
        writer.append([builder.frame(committed_step(step, dp_rank)) for step in steps])
        writer.abandon()

    (finding,) = verify(tmp_path).findings
    assert (finding.severity, finding.step) == (Severity.NOTE, 2)
    assert status(RunReader(tmp_path)).attempts[0].lag_steps == 1
