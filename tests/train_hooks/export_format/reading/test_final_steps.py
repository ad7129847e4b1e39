"""Which steps are final: those that a barrier record covers, or that every writer has sealed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from tests.support.example_exports import begin_attempt, begin_run, committed_step, write_steps
from train_hooks.export_format.barriers import BarrierRecord, write_barrier
from train_hooks.export_format.errors import DamageError, InputError
from train_hooks.export_format.filesystem import AppendFile, OsFileSystem
from train_hooks.export_format.json_files import decode_document, encode_document, info_sha256
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import AttemptReader, RunReader
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.upkeep.repair import repair
from train_hooks.export_format.upkeep.status import status
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.attempts import ResumeToken
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.row_builder import RowBuilder


def reader_of(run_dir: Path) -> AttemptReader:
    return RunReader(run_dir).attempt(1)


def test_what_is_final(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run, num_writers=2)
    write_steps(tmp_path, run, attempt, range(1, 6), roll_size_bytes=9000, close=False)
    reader = reader_of(tmp_path)
    sealed = [
        max(ack.global_step for file in log.files if file.sealed for ack in file.acks if ack.num_rows)
        for log in reader.writers().values()
    ]
    assert reader.final_step() == min(sealed) < 5

    write_barrier(OsFileSystem(), ExportPaths(tmp_path), attempt, 4)
    assert reader.final_step() == reader.barrier_step() == 4
    write_barrier(OsFileSystem(), ExportPaths(tmp_path), attempt, 7)
    with pytest.raises(DamageError, match="a barrier record covers step 7, and not every writer has its steps up to 5"):
        reader.final_step()
    (finding,) = verify(tmp_path).findings[-1:]
    assert "says that step 7 was durable on every writer, and the newest that all have is 5" in finding.message
    assert verify(tmp_path).exit_code == 1


def test_a_barrier_record_of_another_attempt_is_named_and_refused(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run)
    write_steps(tmp_path, run, attempt, [1, 2])
    path = ExportPaths(tmp_path).barrier_json(1, 2)
    record = BarrierRecord(
        run_id=run.run_id, attempt=1, attempt_sha256=info_sha256(attempt), global_step=2, num_writers=1, unix_time_s=0.0
    )
    path.write_bytes(record.encode())
    assert reader_of(tmp_path).barrier_step() == 2
    for changed in (
        {"attempt": 2},
        {"attempt_sha256": "0" * 64},
        {"global_step": 1},
        {"num_writers": 2},
        {"run_id": "x"},
    ):
        path.write_bytes(dataclasses.replace(record, **changed).encode())
        with pytest.raises(
            DamageError, match=r"barrier-000000002\.json is the barrier record of step .*, not of this attempt"
        ):
            reader_of(tmp_path).final_step()
        assert verify(tmp_path).exit_code == 1
        with pytest.raises(DamageError, match="not of this attempt"):
            begin_attempt(tmp_path, run, resume=ResumeToken(run_id="example", attempt=1, global_step=2))


class FailingOnce(OsFileSystem):
    """The first sync of a directory fails."""

    def __init__(self) -> None:
        self.syncs: list[str] = []

    def sync_directory(self, path: Path) -> None:
        self.syncs.append(path.name)
        if len(self.syncs) == 1:
            raise OSError(5, "Input/output error", str(path))
        super().sync_directory(path)


def test_a_barrier_record_whose_name_was_not_durable_is_made_so_by_the_next_call(tmp_path: Path) -> None:
    attempt = begin_attempt(tmp_path, begin_run(tmp_path))
    files = FailingOnce()
    with pytest.raises(OSError, match="Input/output error"):
        write_barrier(files, ExportPaths(tmp_path), attempt, 1)
    write_barrier(files, ExportPaths(tmp_path), attempt, 1)

    assert files.syncs == ["a000001"] * 2


class FirstWriteFails(OsFileSystem):
    """The first bytes of the first segment file are lost."""

    failed = False

    def create(self, path: Path, mode: int = 0o644) -> AppendFile:
        made = super().create(path, mode)
        return cast("AppendFile", _Failing(made, self)) if path.name.endswith("00000.arrows.inprogress") else made


class _Failing:
    def __init__(self, made: AppendFile, owner: FirstWriteFails) -> None:
        self._made, self._owner = made, owner
        self.datasync, self.close = made.datasync, made.close

    def write(self, data: bytes) -> None:
        if not self._owner.failed:
            self._owner.failed = True
            raise OSError(28, "No space left on device")
        self._made.write(data)


@pytest.mark.parametrize("end", ["close", "barrier", "repair"])
def test_a_file_of_which_nothing_is_believed_does_not_hold_finality_back(tmp_path: Path, end: str) -> None:
    """The first file failed at once and stays open for ever; the second holds the steps."""
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run)
    builder = RowBuilder(run, attempt, 0, RunReader(tmp_path).secret())
    writer = RankWriter(FirstWriteFails(), ExportPaths(tmp_path).attempt_dir(1), run, attempt, 0)
    writer.append([builder.frame(committed_step(step, 0)) for step in (1, 2)])
    assert reader_of(tmp_path).final_step() is None
    if end == "barrier":
        write_barrier(OsFileSystem(), ExportPaths(tmp_path), attempt, 2)
    elif end == "close":
        writer.close()
    else:
        writer.abandon()
        repair(tmp_path)

    assert list(reader_of(tmp_path).committed_steps()) == [1, 2]
    assert reader_of(tmp_path).final_step() == 2


@pytest.mark.parametrize("lost", ["acks", "arrows", "all"])
def test_a_resume_and_a_status_need_the_files_that_seals_and_barriers_speak_of(tmp_path: Path, lost: str) -> None:
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run, num_writers=2)
    write_steps(tmp_path, run, attempt, [1, 2, 3])
    write_barrier(OsFileSystem(), ExportPaths(tmp_path), attempt, 3)
    for path in (tmp_path / "export").rglob("rows-r00001*" if lost == "all" else f"rows-r00001*.{lost}"):
        path.unlink()

    if lost == "all":
        with pytest.raises(InputError, match="every writer has acknowledged none"):
            begin_attempt(tmp_path, run, resume=ResumeToken(run_id="example", attempt=1, global_step=3))
    with pytest.raises(
        DamageError, match="a barrier record covers step 3" if lost == "all" else "is there, and .* is not"
    ):
        status(RunReader(tmp_path))
    assert verify(tmp_path).exit_code == 1


class LaterBarrier(OsFileSystem):
    """A training that acknowledges steps and writes their barrier record just before somebody reads records."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then: Callable[[], None] | None = then

    def read(self, path: Path, start: int = 0, end: int | None = None) -> bytes:
        data = super().read(path, start, end)
        then = self.then
        if then is not None and ".acks" in path.name:
            self.then = None
            then()
        return data


def test_a_barrier_record_that_comes_while_records_are_read_is_no_damage(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run)
    builder = RowBuilder(run, attempt, 0, RunReader(tmp_path).secret())
    writer = RankWriter(OsFileSystem(), ExportPaths(tmp_path).attempt_dir(1), run, attempt, 0)
    writer.append([builder.frame(committed_step(1, 0))])

    def go_on() -> None:
        writer.append([builder.frame(committed_step(2, 0))])
        write_barrier(OsFileSystem(), ExportPaths(tmp_path), attempt, 2)

    reader = RunReader(tmp_path, LaterBarrier(go_on)).attempt(1)
    assert reader.final_step() is None
    assert reader.final_step() == 2
    old = RunReader(tmp_path).attempt(1)
    logs = old.writers()
    writer.append([builder.frame(committed_step(3, 0))])
    write_barrier(OsFileSystem(), ExportPaths(tmp_path), attempt, 3)
    assert old.final_step(logs) == 3
    writer.close()


def test_an_attempt_json_with_more_keys_is_still_the_one_that_others_name(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run)
    path = ExportPaths(tmp_path).attempt_json(1)
    document = decode_document(path, path.read_bytes())
    del document["sha256"]
    path.write_bytes(encode_document({**document, "of_a_later_kiseki": [1]}))
    again = RunReader(tmp_path).attempt(1).info
    assert again == attempt
    write_steps(tmp_path, run, again, [1, 2], close=False)
    write_barrier(OsFileSystem(), ExportPaths(tmp_path), again, 2)
    repair(tmp_path)
    compact(RunReader(tmp_path))

    assert reader_of(tmp_path).barrier_step() == 2
    assert verify(tmp_path).findings == ()
