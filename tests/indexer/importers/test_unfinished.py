"""Exports and dumps that we make are whole or not there, however their making ends; and can then be made again."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from indexer.importers.llm_jp.exporter import export_dump
from indexer.importers.llm_jp.importer import import_dump
from indexer.importers.resolved import Boundaries, resolve_export
from indexer.importers.unfinished import unfinished_directory
from tests.conftest import TextRun
from tests.support.export_maker import all_rows
from train_hooks.export_format.errors import InputError, RunError
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.writing.writer import RankWriter

PROGRAM = """
import os, signal, sys
from pathlib import Path
import indexer.importers.llm_jp.exporter, indexer.importers.llm_jp.importer, indexer.importers.resolved
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.writing.writer import RankWriter

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background has it ignored
what, given, made, number = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])

def die(*_):
    os.kill(os.getpid(), number)

RankWriter.close = die
indexer.importers.llm_jp.exporter._RankFiles.close = die
if what == "import":
    indexer.importers.llm_jp.importer.import_dump(given, made, vocab_size=2000)
elif what == "resolve":
    indexer.importers.resolved.resolve_export(RunReader(given), made, indexer.importers.resolved.Boundaries(eos=0))
else:
    indexer.importers.llm_jp.exporter.export_dump(RunReader(given), made)
"""


@pytest.fixture(scope="module")
def dump(text_run: TextRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dump") / "dump"
    export_dump(RunReader(text_run.run_dir), directory)
    return directory


def names_below(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("what", ["import", "resolve", "dump"])
def test_killed_at_the_end_of_the_first_rank(
    what: str, number: signal.Signals, text_run: TextRun, dump: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    given = dump if what == "import" else text_run.run_dir
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, what, given, made, str(int(number))],
        check=False,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode in (-number, 1 if number == signal.SIGINT else None), done.stderr
    if what == "dump":
        assert not made.exists()
        export_dump(RunReader(text_run.run_dir), made)
        assert names_below(made) == names_below(dump) and names_below(tmp_path)[0] == "made"
        return
    with pytest.raises(RunError, match="is not a run directory"):
        RunReader(made)
    if what == "import":
        import_dump(dump, made, vocab_size=2000)
    else:
        resolve_export(RunReader(text_run.run_dir), made, Boundaries(eos=0))
    assert RunReader(made).info.run_id == ("made" if what == "import" else "text")
    assert len(all_rows(made)) == len(all_rows(text_run.run_dir)) and [path.name for path in made.iterdir()] == [
        "export"
    ]


def full_disk(_: RankWriter) -> None:
    raise OSError("the disk is full")


def test_nothing_is_left_of_what_failed(
    dump: Path, text_run: TextRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.setattr(RankWriter, "close", full_disk)
    monkeypatch.setattr("indexer.importers.llm_jp.exporter._RankFiles.close", full_disk)
    for name in ("there", "new"):
        with pytest.raises(OSError, match="full"):
            import_dump(dump, tmp_path / name, vocab_size=2000)
        with pytest.raises(OSError, match="full"):
            export_dump(RunReader(text_run.run_dir), tmp_path / name)
    assert names_below(tmp_path) == ["there"]


@pytest.mark.parametrize("importing", [True, False])
def test_two_at_once(importing: bool, dump: Path, text_run: TextRun, tmp_path: Path) -> None:
    """The one that came later is refused, and does not take what the other has begun for a leftover."""
    target = tmp_path / "made"
    place = target / "import.inprogress" if importing else tmp_path / "made.inprogress"
    make: Callable[[], object] = partial(import_dump, dump, target, vocab_size=2000)
    if not importing:
        make = partial(export_dump, RunReader(text_run.run_dir), target)
    (place / "begun").mkdir(parents=True)
    other = os.open(place, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another process"):
        make()
    assert (place / "begun").exists()
    os.close(other)
    with unfinished_directory(place) as mine:
        assert list(mine.iterdir()) == []
    assert not place.exists()
