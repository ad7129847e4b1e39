"""Reading: sealed, open, torn and growing files; nothing is parsed that does not match its hash."""

from pathlib import Path

import pytest

from tests.support.example_exports import (
    begin_attempt,
    begin_run,
    committed_step,
    write_export,
    write_steps,
)
from train_hooks.export_format.acknowledgement import AckKind, ack_size
from train_hooks.export_format.errors import DamageError, RunError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import AttemptReader, RunReader
from train_hooks.export_format.records import Row, StepStatus
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.row_builder import RowBuilder


def rows_of(attempt: AttemptReader, first: int = 1, last: int = 99) -> list[Row]:
    return [row for frame in attempt.frames(first, last) for row in attempt.rows(frame)]


def summary(attempt: AttemptReader) -> list[tuple[object, ...]]:
    return [
        (str(row.address), row.tokens.tolist(), row.segments, row.tensors, row.sample_index, row.loss, row.leaf)
        for row in rows_of(attempt)
    ]


def only_file(run_dir: Path, pattern: str) -> Path:
    (path,) = (run_dir / "export").rglob(pattern)
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    run = write_export(tmp_path)
    first, second = run.attempts()

    assert list(first.committed_steps()) == [1, 2, 3, 4, 5]
    assert list(second.committed_steps()) == [4, 5, 6]
    assert all(log.closed and log.last_step == 5 for log in first.writers().values())
    assert len(rows_of(first, 2, 3)) == 2 * 2 * 4
    tokens = {str(row.address): row.tokens.tolist() for row in rows_of(second)}
    fed = committed_step(5, 1).microbatches[1]
    assert tokens["example/a2/s5/r1/m1/q0"] == fed.tokens[0].tolist()  # type: ignore[union-attr]
    assert first.step_status() == dict.fromkeys(range(1, 6), StepStatus.APPLIED)
    assert {record.values["loss"] for _, record in first.step_records()} == {1 / step for step in range(1, 6)}


def test_what_is_not_there(tmp_path: Path) -> None:
    run = write_export(tmp_path)

    with pytest.raises(RunError, match="has no attempt 9"):
        run.attempt(9)
    with pytest.raises(RunError, match="without a tokenizer"):
        run.tokenizer_path()


def test_open_files_are_read_as_far_as_they_are_acknowledged(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run)
    write_steps(tmp_path, run, attempt, [1, 2, 3], close=False)
    with only_file(tmp_path, "*.arrows.inprogress").open("ab") as data:
        data.write(b"half a frame")
    acks = only_file(tmp_path, "*.acks.inprogress")
    acks.write_bytes(acks.read_bytes()[:-1])

    reader = RunReader(tmp_path).attempt(1)
    assert list(reader.committed_steps()) == [1, 2]
    assert len(rows_of(reader)) == 8
    assert reader.writers()[0].files[0].torn == "acknowledgement record 3 is cut or damaged"


def test_a_flipped_bit_is_not_parsed(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    attempt = begin_attempt(tmp_path, run)
    write_steps(tmp_path, run, attempt, [1, 2])
    path = only_file(tmp_path, "*.arrows")
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)

    reader = RunReader(tmp_path).attempt(1)
    assert len(rows_of(reader, 1, 1)) == 4
    with pytest.raises(DamageError, match=r"rows-r00000-00000\.arrows: bytes"):
        rows_of(reader, 2, 2)


def test_a_sealed_file_whose_records_are_cut_is_damage(tmp_path: Path) -> None:
    write_export(tmp_path)
    path = next((tmp_path / "export").rglob("rows-r00001-00000.acks"))
    path.write_bytes(path.read_bytes()[: -ack_size(3)])

    with pytest.raises(DamageError, match=r"rows-r00001-0000\d\.acks"):
        RunReader(tmp_path).attempt(1).writers()


def test_a_missing_file_in_the_midst_is_damage(tmp_path: Path) -> None:
    write_export(tmp_path)
    for path in (tmp_path / "export" / "attempts" / "a000001").glob("rows-r00000-00001.*"):
        path.unlink()

    with pytest.raises(DamageError, match="segment file 1 of dp_rank 0 is missing"):
        RunReader(tmp_path).attempt(1).writers()


def test_a_reader_that_opened_before_the_writer_sealed_reads_on(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    info = begin_attempt(tmp_path, run)
    directory = ExportPaths(tmp_path).attempt_dir(1)
    writer = RankWriter(OsFileSystem(), directory, run, info, 0)
    builder = RowBuilder(run, info, 0, RunReader(tmp_path).secret())
    writer.append([builder.frame(committed_step(1, 0))])
    reader = RunReader(tmp_path).attempt(1)
    file = reader.writers()[0].files[0]
    step = next(ack for ack in file.acks if ack.kind is AckKind.STEP)
    writer.close()
    assert not file.data_path.exists()
    before = reader.frame(file, step)
    assert compact(RunReader(tmp_path))
    assert not list(directory.glob("*.arrows"))

    assert reader.frame(file, step).batch.equals(before.batch)


def test_compaction_changes_no_row(tmp_path: Path) -> None:
    run = write_export(tmp_path)
    before = [summary(attempt) for attempt in run.attempts()]
    records = [list(attempt.step_records()) for attempt in run.attempts()]
    done = compact(run, row_group_bytes=500)

    assert [item.num_files for item in done] == [3, 3, 1, 1]
    assert not list((tmp_path / "export").rglob("*.arrows"))
    assert [summary(attempt) for attempt in run.attempts()] == before
    assert [list(attempt.step_records()) for attempt in run.attempts()] == records
    assert compact(run) == []


def test_a_damaged_file_is_not_compacted(tmp_path: Path) -> None:
    run = write_export(tmp_path)
    path = next((tmp_path / "export").rglob("rows-r00001-00001.arrows"))
    content = bytearray(path.read_bytes())
    content[50] ^= 1
    path.write_bytes(content)

    with pytest.raises(DamageError, match=r"rows-r00001-00001\.arrows"):
        compact(run)
    assert path.exists()


def test_the_data_that_a_dead_compaction_left_is_removed_if_the_copy_is_sound(tmp_path: Path) -> None:
    run = write_export(tmp_path)
    path = next((tmp_path / "export").rglob("rows-r00001-00001.arrows"))
    content = path.read_bytes()
    compact(run)
    path.write_bytes(content)
    parquet = path.with_name("rows-r00001-00000-00002.rows.parquet")
    copy = parquet.read_bytes()
    parquet.write_bytes(copy[:200] + bytes([copy[200] ^ 1]) + copy[201:])
    with pytest.raises(DamageError, match=r"rows\.parquet"):
        compact(run)
    assert path.read_bytes() == content
    parquet.write_bytes(copy)

    assert compact(run) == []
    assert not path.exists()


def test_compacted_rows_are_plain_parquet(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    compact(write_export(tmp_path))
    path = tmp_path / "export" / "attempts" / "a000001" / "rows-r00001-00000-00002.rows.parquet"
    table = pq.read_table(path)

    assert table["dp_rank"].unique().to_pylist() == [1]
    assert table["global_step"].unique().to_pylist() == [1, 2, 3, 4, 5]
