"""A damaged shard on the command line: the others answer, and the answer says what is missing."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest

from indexer.reader import IndexReader
from tests.conftest import TextRun
from tests.support.export_maker import all_rows
from tests.ui.test_cli import run_here

WORD = " the"


@pytest.fixture
def damaged(text_run: TextRun, tmp_path: Path) -> tuple[Path, str]:
    """(a run, the name of its shard that can no longer be opened)."""
    run_dir = tmp_path / "run"
    shutil.copytree(text_run.run_dir, run_dir)
    name = IndexReader.open(run_dir).shards[0].info.name
    path = run_dir / "index/shards" / name / "spans.bin"
    path.write_bytes(path.read_bytes()[:-5000])
    return run_dir, name


def test_a_count_says_that_a_shard_is_missing(
    damaged: tuple[Path, str], text_run: TextRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, name = damaged
    counting = partial(run_here, capsys, monkeypatch, "count")
    whole = json.loads(counting(text_run.run_dir, WORD, "--json")[1])
    assert whole["count_relation"] == "eq" and whole["failures"] == []
    assert whole["shards_failed"] == 0 and whole["shards_searched"] == whole["shards_total"] > 1
    code, out, err = counting(run_dir, WORD, "--json")
    found = json.loads(out)
    assert code == 3 and found["count"] < whole["count"] and found["count_relation"] == "gte"
    assert found["shards_failed"] == 1 and name in found["failures"][0]
    code, out, err = counting(run_dir, WORD)
    assert code == 3 and out == f"≥ {found['count']:,}\n" and name in err and "kiseki index --verify" in err


def test_a_sequence_of_a_damaged_shard_is_not_said_to_be_nowhere(
    damaged: tuple[Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, name = damaged
    first, last = (str(row.address) for row in (all_rows(run_dir)[0], all_rows(run_dir)[-1]))
    assert run_here(capsys, monkeypatch, "sequence", run_dir, last)[0] == 0
    code, out, err = run_here(capsys, monkeypatch, "sequence", run_dir, first)
    assert (code, out) == (1, "") and first in err and name in err and "kiseki index --verify" in err
