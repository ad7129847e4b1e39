"""A reader that somebody else wrote from docs/export_format.md alone (tests/support) gives the same rows."""

from pathlib import Path

import pytest

from tests.support.example_exports import begin_attempt, begin_run, write_export, write_steps
from tests.support.independent_reader import read_run
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.upkeep.compact import compact


def read(run_dir: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {
        address: (row.tokens, row.leaf)
        for attempt in read_run(run_dir).attempts
        for address, row in attempt.rows.items()
    }


def expected(run: RunReader) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {
        str(row.address): (tuple(row.tokens.tolist()), row.leaf)
        for attempt in run.attempts()
        for frame in attempt.frames(1, 99)
        for row in attempt.rows(frame)
    }


@pytest.mark.parametrize("shorter_rows", [False, True])
@pytest.mark.parametrize("compacted", [False, True])
def test_a_finished_export(tmp_path: Path, compacted: bool, shorter_rows: bool) -> None:
    run = write_export(tmp_path, shorter_rows=shorter_rows)
    if compacted:
        compact(run, row_group_bytes=500)

    assert len(expected(run)) == 64
    assert read(tmp_path) == expected(run)


def test_an_export_whose_writers_died(tmp_path: Path) -> None:
    run = begin_run(tmp_path)
    write_steps(
        tmp_path, run, begin_attempt(tmp_path, run, num_writers=2), [1, 2, 3], roll_size_bytes=6000, close=False
    )
    for path in (tmp_path / "export").rglob("*.inprogress"):
        path.write_bytes(path.read_bytes() + b"torn")

    assert len(expected(RunReader(tmp_path))) == 24
    assert read(tmp_path) == expected(RunReader(tmp_path))


def test_the_document_names_every_key_and_column() -> None:
    from train_hooks.export_format.barriers import BarrierRecord
    from train_hooks.export_format.reading.compacted import CompactionManifest
    from train_hooks.export_format.records import AttemptInfo, RunInfo
    from train_hooks.export_format.schema import ROW_FIELDS
    from train_hooks.export_format.seals import Seal

    text = (Path(__file__).parents[3] / "docs" / "export_format.md").read_text(encoding="utf-8")
    kinds = (AttemptInfo, BarrierRecord, CompactionManifest, RunInfo, Seal)
    names = [name for kind in kinds for name in kind.__slots__ if name != "file_sha256"]  # no key of the file

    assert [name for name in [*names, *(field.name for field in ROW_FIELDS)] if f"`{name}`" not in text] == []
