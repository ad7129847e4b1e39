"""Any change of a finished export is found and named: flips, cuts, deletions, duplications, swaps."""

import random
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.example_exports import write_export
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.verify.findings import Report, Severity
from train_hooks.export_format.verify.run import verify

NUM_FLIPS = 200


@pytest.fixture(scope="module", params=["sealed", "compacted"])
def pristine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("export") / "run"
    run = write_export(run_dir, tokenizer=True)
    if request.param == "compacted":
        assert compact(run, row_group_bytes=1000)
    return run_dir


@pytest.fixture
def run_dir(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "run"))


def files_of(run_dir: Path) -> list[Path]:
    return sorted(path for path in (run_dir / "export").rglob("*") if path.is_file())


def named(report: Report, path: Path) -> bool:
    """Whether the file, or for an attempt as a whole its directory, stands in a finding of damage."""
    text = "".join(f"{finding.path} {finding.message}\n" for finding in report.of(Severity.DAMAGED))
    return path.name in text or path.name.removesuffix(".json") in text


def flips(run_dir: Path, rng: random.Random) -> Iterator[tuple[Path, int]]:
    files = files_of(run_dir)
    sizes = [path.stat().st_size for path in files]
    for index, path in enumerate(files):
        yield path, rng.randrange(sizes[index] * 8)
    for _ in range(NUM_FLIPS - len(files)):
        path = rng.choices(files, sizes)[0] if rng.random() < 0.5 else rng.choice(files)
        yield path, rng.randrange(path.stat().st_size * 8)


def test_a_whole_export_has_no_findings(pristine: Path) -> None:
    report = verify(RunReader(pristine))

    assert report.findings == ()
    assert report.exit_code == 0
    assert report.num_rows == 2 * 4 * (5 + 3)
    assert report.num_tokens == 16 * report.num_rows


def test_every_flipped_bit_is_found_and_named(run_dir: Path) -> None:
    for path, bit in flips(run_dir, random.Random(7)):
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        report = verify(run_dir)
        path.write_bytes(content)
        assert report.exit_code == 1, f"{path} bit {bit}"
        assert named(report, path), f"{path} bit {bit}: {report.findings}"


def test_every_cut_file_is_found(run_dir: Path) -> None:
    for path in files_of(run_dir):
        content = path.read_bytes()
        for size in {0, len(content) // 2, len(content) - 1}:
            path.write_bytes(content[:size])
            assert verify(run_dir).exit_code == 1, f"{path} cut to {size}"
        path.write_bytes(content + b"\0")
        assert verify(run_dir).exit_code == 1, f"{path} with a byte more"
        path.write_bytes(content)


def test_every_deleted_file_is_found(run_dir: Path) -> None:
    for path in files_of(run_dir):
        if path.name == "run.json":
            continue
        content = path.read_bytes()
        path.unlink()
        report = verify(run_dir)
        assert report.exit_code == 1, path
        assert named(report, path), (path, report.findings)
        path.write_bytes(content)


def test_every_deleted_segment_file_is_found_with_all_its_parts(run_dir: Path) -> None:
    stems = {path.name.split(".")[0] for path in files_of(run_dir) if path.suffix == ".acks"}
    for attempt in ("a000001", "a000002"):
        directory = run_dir / "export" / "attempts" / attempt
        for stem in stems:
            saved = {path: path.read_bytes() for path in directory.glob(f"{stem}.*")}
            for path in saved:
                path.unlink()
            assert verify(run_dir).exit_code == (1 if saved else 0), (attempt, stem)
            for path, content in saved.items():
                path.write_bytes(content)


def test_a_deleted_attempt_is_found_where_a_later_one_follows(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "export" / "attempts" / "a000001")

    assert verify(run_dir).exit_code == 1


def test_swapped_files_are_found(run_dir: Path) -> None:
    files = [path for path in files_of(run_dir) if path.parent.name.startswith("a0")]
    for first, second in pairwise(files):
        one, other = first.read_bytes(), second.read_bytes()
        first.write_bytes(other)
        second.write_bytes(one)
        assert verify(run_dir).exit_code == 1, (first, second)
        first.write_bytes(one)
        second.write_bytes(other)


def test_doubled_segment_files_are_found(run_dir: Path) -> None:
    directory = run_dir / "export" / "attempts" / "a000002"
    for source in ("rows-r00000-00000", "rows-r00001-00000"):
        for target in ("rows-r00000-00001", "rows-r00002-00000"):
            made = []
            for path in list(directory.glob(f"{source}.*")):
                copy = path.with_name(path.name.replace(source, target))
                shutil.copy(path, copy)
                made.append(copy)
            assert verify(run_dir).exit_code == 1, (source, target)
            for copy in made:
                copy.unlink()


def test_a_doubled_attempt_is_found(run_dir: Path) -> None:
    attempts = run_dir / "export" / "attempts"
    shutil.copytree(attempts / "a000002", attempts / "a000003")

    assert verify(run_dir).exit_code == 1


def test_a_file_of_another_name_is_noted(run_dir: Path) -> None:
    (run_dir / "export" / "attempts" / "a000001" / "rows-r000000-00000.acks").write_bytes(b"")
    report = verify(run_dir)

    assert [finding.severity for finding in report.findings] == [Severity.NOTE]
    assert "rows-r000000-00000.acks" in report.findings[0].path
