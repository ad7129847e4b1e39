"""`kiseki document` as a user has it."""

import json

import pytest

from tests.conftest import TextRun
from tests.ui.test_cli import run_here


def test_document_as_text_and_as_json(
    text_run: TextRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, document_id = max(text_run.documents, key=lambda name: len(text_run.documents[name]))
    arguments = ["document", text_run.run_dir, source, document_id]
    code, out, err = run_here(capsys, monkeypatch, *arguments, "--limit", "2")
    assert (code, err) == (0, "") and out.startswith(f"{source} / {document_id}\n")
    assert "with repeats" in out and out.count("text/a1/s") == 2 and "more: --after document-v1." in out
    assert text_run.documents[source, document_id].split()[0] in out
    document = json.loads(run_here(capsys, monkeypatch, *arguments, "--limit", "2", "--json")[1])
    after = document["next"]
    assert len(document["exposures"]) == 2 and document["truncated"] and document["exposures"][0]["global_step"] >= 1
    rest = json.loads(run_here(capsys, monkeypatch, *arguments, "--limit", "1000", "--after", after, "--json")[1])
    assert len(rest["exposures"]) == document["num_exposures"] - 2 and rest["next"] is None
    assert rest["exposures"][-1]["num_new_tokens"] == 0
    code, out, err = run_here(capsys, monkeypatch, "document", text_run.run_dir, source, document_id + "x")
    assert (code, out) == (2, "") and "near: " in err and document_id in err
    code, _, err = run_here(capsys, monkeypatch, *arguments, "--steps", "100000:")
    assert code == 2 and "none of the selected steps" in err
