"""A few seconds of the proofs that `make proofs` runs whole, and that they can fail."""

from pathlib import Path

import pytest

from tests.proofs.changes import CHANGES
from tests.proofs.damage import EXPORTS, damaged_export
from tests.proofs.random_exports import random_export
from tests.proofs.readers import compare_seed, kept_exports
from tests.proofs.tampering import KINDS, tamper
from tests.simulated_job.finality import FinalSteps
from tests.simulated_job.job import RUN_DIR
from tests.simulated_job.memory_files import MemoryFileSystem
from tests.support.example_exports import write_export
from tests.support.second_reader import assert_readers_agree
from train_hooks.export_format.reading.reader import AttemptReader
from train_hooks.export_format.verify import file as verify_file
from train_hooks.export_format.writing.attempts import ResumeToken


@pytest.mark.parametrize("kind", KINDS)
def test_each_change_is_found(kind: str) -> None:
    found = tamper(kind, 4, 20)

    assert found.missed == []
    assert found.done.total() == 20
    assert len(found.done) > len(CHANGES) // 3


def test_without_record_commitments_changes_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_file, "_check_commitment", lambda *_: None)

    assert any("loss" in text for text in tamper("compacted", 4, 20).missed)


@pytest.mark.parametrize("kind", EXPORTS)
def test_each_damage_is_found(kind: str) -> None:
    found = damaged_export(kind, 3, 30)

    assert found.missed == []
    assert len(found.done) > 3


def test_two_readers_read_the_same() -> None:
    found = [compare_seed(seed) for seed in range(12)]

    assert [failure for _, failure in found if failure is not None] == []
    assert sum(rows for rows, _ in found) > 100
    assert sum(rows > 0 for rows, _ in found) > 6


def test_a_seed_is_always_the_same_export() -> None:
    names = [[path.name for path in random_export(5).contents(RUN_DIR)] for _ in range(2)]

    assert names[0] == names[1]


@pytest.mark.parametrize("run_dir", kept_exports(), ids=lambda path: path.name)
def test_two_readers_read_the_same_from_kept_exports(run_dir: Path) -> None:
    assert assert_readers_agree(run_dir) > 0


def test_readers_that_differ_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_export(tmp_path)
    assert assert_readers_agree(tmp_path) == 64
    monkeypatch.setattr(AttemptReader, "final_step", lambda *_: 2)
    with pytest.raises(AssertionError, match="attempt 1, final_step: ours reads 2, the second reader 5"):
        assert_readers_agree(tmp_path)


def test_a_run_that_one_reader_refuses_must_be_refused_by_both(tmp_path: Path) -> None:
    write_export(tmp_path)
    (seal,) = (tmp_path / "export" / "attempts" / "a000002").glob("rows-r00001*.seal.json")
    seal.write_bytes(seal.read_bytes().replace(b"closed", b"rolled"))
    assert assert_readers_agree(tmp_path) == 0


def test_a_final_step_that_changes_is_seen(tmp_path: Path) -> None:
    write_export(tmp_path)
    files = MemoryFileSystem()
    _load(tmp_path, files)
    final = FinalSteps(tmp_path, files)
    final.look()
    assert final.faults == []
    final.covered(ResumeToken(run_id="example", attempt=2, global_step=7))
    final.look()
    assert final.faults == ["attempt 2: step 7 has a barrier, 6 is final"]
    files.put(tmp_path / "export" / "attempts" / "a000002" / "rows-r00001-00000.acks", b"")
    final.look()
    assert len(final.faults) > 1


def _load(directory: Path, files: MemoryFileSystem) -> None:
    for parent in [*reversed(directory.parents), directory]:
        if not files.exists(parent):
            files.make_directory(parent)
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            files.make_directory(path)
        else:
            files.put(path, path.read_bytes())
