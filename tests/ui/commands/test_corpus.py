"""`kiseki export verify --corpus` and `kiseki document --corpus` as a user has them, on the example corpus itself."""

import gzip
import json
from pathlib import Path

import pytest

from tests.conftest import CORPUS, TextRun, byte_level_bpe
from tests.ui.test_cli import run_here


def test_verify_with_the_corpus(
    text_run: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["export", "verify", text_run.run_dir, "--corpus"]
    code, out, err = run_here(capsys, monkeypatch, *arguments, CORPUS)
    assert code == 0 and "the export holds" in out and "segments are what their texts give" in out
    assert "590 records in 10 files read" in out and "reading the corpus's bytes" in err
    for source in ("devils-dictionary", "tatoeba-ja"):
        (tmp_path / f"{source}.jsonl.gz").write_bytes((CORPUS / f"{source}.jsonl.gz").read_bytes())
    file = tmp_path / "devils-dictionary.jsonl.gz"
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")
    record = json.loads(lines[0])
    lines[0] = json.dumps({**record, "text": record["text"].replace("e", "\x1be", 1)}, ensure_ascii=False)
    lines[1] = lines[1][:40]
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    code, out, err = run_here(capsys, monkeypatch, *arguments, tmp_path)
    assert code == 1 and "\x1b" not in out + err and "DIFFER" in out and "devils-dictionary.jsonl.gz line 2" in err
    assert f"edited text devils-dictionary / {record['id']} (devils-dictionary.jsonl.gz#1), text/a1/s1/r0/m0/q0" in out
    assert "missing document devils-dictionary / " in out
    code, out, _ = run_here(capsys, monkeypatch, *arguments, tmp_path, "--json")
    found = json.loads(out)
    assert code == found["exit_code"] == found["corpus"]["exit_code"] == 1
    assert found["corpus"]["num_segments"] == sum(
        found["corpus"][f"num_{state}"] for state in ("equal", "different", "missing")
    )
    file.unlink()
    code, out, _ = run_here(capsys, monkeypatch, *arguments, tmp_path)
    assert code == 3 and "have no text here" in out
    byte_level_bpe(list(text_run.documents.values()), 600).save(str(tmp_path / "other.json"))
    code, out, _ = run_here(capsys, monkeypatch, *arguments, CORPUS, "--tokenizer", tmp_path / "other.json")
    assert code == 1 and "other tokenizer" in out and "the run was exported with" in out
    for bad in (["--corpus", tmp_path / "none"], ["--tokenizer", tmp_path / "other.json"]):
        code, out, err = run_here(capsys, monkeypatch, "export", "verify", text_run.run_dir, *bad)
        assert code == 2 and "expected" in err.splitlines()[-1]


def test_document_with_its_source_text(
    text_run: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, document_id = max(text_run.documents, key=lambda name: len(text_run.documents[name]))
    arguments = ["document", text_run.run_dir, source, document_id, "--corpus"]
    code, out, err = run_here(capsys, monkeypatch, *arguments, CORPUS)
    assert (
        code == 0
        and "reading the corpus's bytes" in err
        and f"source: {source}.jsonl.gz#" in out
        and ": seen twice" not in out
        and "seen 2 times, steps " in out
    )
    code, out, _ = run_here(capsys, monkeypatch, *arguments, CORPUS, "--before-step", "3", "--json")
    parts = json.loads(out)["source_text"]["parts"]
    assert code == 0 and "".join(part["text"] for part in parts) == text_run.documents[source, document_id]
    assert all(step < 3 for part in parts for step in part["steps"])
    code, out, _ = run_here(capsys, monkeypatch, *arguments, CORPUS, "--before-step", "3")
    assert "not seen" in out or all(part["steps"] for part in parts)
    (tmp_path / "a.jsonl").write_text('{"id": "x", "text": "y", "source": "z"}\n')
    code, out, err = run_here(capsys, monkeypatch, *arguments, tmp_path)
    assert (code, out) == (3, "") and "has no document" in err
    text = text_run.documents[source, document_id]
    record = {"id": document_id, "text": text.replace(text[len(text) // 2], "#"), "source": source}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    code, out, _ = run_here(capsys, monkeypatch, *arguments, tmp_path)
    assert code == 0 and "not what this text gives" in out
