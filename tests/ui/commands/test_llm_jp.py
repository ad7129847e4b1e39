"""`kiseki import llm-jp` and `kiseki export llm-jp` as a user has them."""

import gzip
import json
from pathlib import Path

import pytest

from tests.conftest import TextRun
from tests.ui.test_cli import run_here
from train_hooks.export_format.reading.reader import RunReader


def test_out_and_in_again(
    text_run: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dump, run = tmp_path / "dump", tmp_path / "run"
    code, out, err = run_here(capsys, monkeypatch, "export", "llm-jp", text_run.run_dir, dump)
    assert code == 0 and "sequences" in out and "2 files" in out and "writing steps" in err
    tokenizer = RunReader(text_run.run_dir).tokenizer_path()
    arguments = ["import", "llm-jp", dump, run, "--tokenizer", tokenizer, "--eos", "0"]
    code, out, err = run_here(capsys, monkeypatch, *arguments)
    assert code == 0 and f"attempt 1: steps 1–{text_run.num_steps}" in out and "run `kiseki index" in out
    assert "importing bytes" in err
    code, out, _ = run_here(capsys, monkeypatch, "export", "status", run)
    assert code == 0 and "imported from an LLM-jp dump" in out and "not observed by the hook" in out
    code, out, _ = run_here(capsys, monkeypatch, "export", "status", run, "--json")
    assert json.loads(out)["origin"]["kind"] == "imported"
    assert run_here(capsys, monkeypatch, "export", "verify", run)[0] == 0
    assert run_here(capsys, monkeypatch, *arguments)[0] == 2
    code, out, _ = run_here(capsys, monkeypatch, "export", "llm-jp", run, tmp_path / "again", "--json")
    found = json.loads(out)
    assert code == 0 and found["num_files"] == 2
    path = dump / "used_data_00/used_data_1.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + b"\x1b[31m no JSON\n"))
    code, out, err = run_here(capsys, monkeypatch, *arguments[:3], tmp_path / "other", *arguments[4:], "--json")
    assert (
        code == 1 and json.loads(out)["num_problems"] == 1 and "used_data_1.jsonl.gz line" in err and "\x1b" not in err
    )
    code, out, err = run_here(
        capsys, monkeypatch, "import", "llm-jp", tmp_path / "none", tmp_path / "x", *arguments[4:]
    )
    assert (code, out) == (2, "") and "expected used_data_00/used_data_0.jsonl.gz" in err
