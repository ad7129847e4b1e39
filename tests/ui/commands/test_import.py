"""`kiseki import metrics` as a user has it."""

import json
from pathlib import Path

import pytest

from indexer.build.update import update_index
from tests.indexer.metrics.test_tensorboard import FILES
from tests.support.example_exports import write_export
from tests.ui.test_cli import run_here


def test_import_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write_export(tmp_path / "run")
    update_index(tmp_path / "run")
    (tmp_path / "m.csv").write_text("step,\x1b[31macc\n1,0.5\n2,x\n")
    arguments = ["import", "metrics", tmp_path / "run", FILES / "torch.tfevents"]
    code, out, err = run_here(capsys, monkeypatch, *arguments)
    assert (code, err) == (0, "") and "25 values, steps 1–8" in out and "run `kiseki index" in out
    code, out, err = run_here(capsys, monkeypatch, *arguments, tmp_path / "m.csv")
    assert code == 1 and "imported before, 25 values" in out and "m.csv line 3: expected a number" in err
    assert "\x1b" not in out + err
    code, out, _ = run_here(capsys, monkeypatch, *arguments, "--json")
    assert code == 0 and json.loads(out)[0]["known"] is True
    code, out, err = run_here(capsys, monkeypatch, "import", "metrics", tmp_path / "run", tmp_path / "nothing.csv")
    assert (code, out) == (2, "") and "nothing.csv" in err and len(err.splitlines()) == 1
    update_index(tmp_path / "run")
    query = "SELECT count(*) AS n FROM step_metrics WHERE origin LIKE '%torch.tfevents'"
    code, out, _ = run_here(capsys, monkeypatch, "sql", tmp_path / "run", query, "--json")
    assert code == 0 and json.loads(out)[0]["n"] > 15
