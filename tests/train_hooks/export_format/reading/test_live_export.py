"""Reading, verification and status beside a writer that goes on writing, rolling and sealing."""

import threading
from pathlib import Path

import pytest

from tests.support.example_exports import begin_attempt, begin_run, committed_step
from train_hooks.export_format.errors import ExportStopped
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.upkeep.repair import repair
from train_hooks.export_format.upkeep.status import status
from train_hooks.export_format.verify.findings import Severity
from train_hooks.export_format.verify.run import verify
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.row_builder import RowBuilder

NUM_STEPS = 60


def test_readers_of_a_growing_export_never_fail(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    info = begin_attempt(tmp_path, run)
    builder = RowBuilder(run, info, 0, RunReader(tmp_path).secret())
    writer = RankWriter(OsFileSystem(), ExportPaths(tmp_path).attempt_dir(1), run, info, 0, roll_size_bytes=5000)
    acknowledged = [0]
    errors: list[BaseException] = []

    def write() -> None:
        try:
            for step in range(1, NUM_STEPS + 1):
                writer.append([builder.frame(committed_step(step, 0))])
                acknowledged[0] = step
            writer.close()
        except BaseException as error:  # noqa: BLE001  the thread's edge
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    rounds = 0
    while thread.is_alive() or rounds < 2:
        rounds += 1
        before = acknowledged[0]
        reader = RunReader(tmp_path).attempt(1)
        steps = reader.committed_steps()
        assert list(steps) == list(range(1, len(steps) + 1))
        assert len(steps) >= before
        read = [frame.ack.global_step for frame in reader.frames(1, NUM_STEPS)]
        assert read == list(range(1, len(read) + 1))
        assert len(read) >= len(steps)
        assert verify(tmp_path).of(Severity.DAMAGED) == ()
        assert status(RunReader(tmp_path)).attempts[0].state in ("live", "closed")
        if thread.is_alive():
            assert {action.kind for action in repair(tmp_path)} <= {"left"}
        if rounds % 2:
            compact(RunReader(tmp_path), level=1)
    thread.join()

    assert errors == []
    assert len(RunReader(tmp_path).attempt(1).committed_steps()) == NUM_STEPS
    assert verify(tmp_path).findings == ()


@pytest.mark.parametrize(("operation", "call"), [("read", 1), ("size", 1), ("size", 2)])
def test_a_file_that_is_sealed_between_two_looks_at_it(tmp_path: Path, operation: str, call: int) -> None:
    run = begin_run(tmp_path)
    info = begin_attempt(tmp_path, run)
    builder = RowBuilder(run, info, 0, RunReader(tmp_path).secret())
    writer = RankWriter(OsFileSystem(), ExportPaths(tmp_path).attempt_dir(1), run, info, 0)
    writer.append([builder.frame(committed_step(1, 0))])
    left, calls = [writer], [operation] * call

    class Sealing(OsFileSystem):
        def size(self, path: Path) -> int:
            self._seal("size", path)
            return super().size(path)

        def read(self, path: Path, start: int = 0, end: int | None = None) -> bytes:
            self._seal("read", path)
            return super().read(path, start, end)

        def _seal(self, done: str, path: Path) -> None:
            if done == operation and path.name.endswith(".arrows.inprogress") and left:
                calls.pop()
                if not calls:
                    left.pop().close()

    assert verify(tmp_path, file_system=Sealing()).of(Severity.DAMAGED) == ()
    assert left == []
    assert verify(tmp_path).findings == ()


def test_a_second_writer_of_a_dp_rank_is_refused(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    info = begin_attempt(tmp_path, run)
    directory = ExportPaths(tmp_path).attempt_dir(1)
    RankWriter(OsFileSystem(), directory, run, info, 0).abandon()

    with pytest.raises(FileExistsError):
        RankWriter(OsFileSystem(), directory, run, info, 0)


def test_a_closed_writer_writes_no_more(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    info = begin_attempt(tmp_path, run)
    builder = RowBuilder(run, info, 0, RunReader(tmp_path).secret())
    writer = RankWriter(OsFileSystem(), ExportPaths(tmp_path).attempt_dir(1), run, info, 0)
    writer.append([])
    writer.close()
    for again in (writer.close, lambda: writer.append([builder.frame(committed_step(1, 0))])):
        with pytest.raises(ExportStopped, match="is closed"):
            again()

    assert [finding.message.partition(":")[0] for finding in verify(tmp_path).findings] == [
        "holds no step that every writer has committed"
    ]
    assert verify(tmp_path).exit_code == 3
