"""`kiseki tombstone` from hiding to removal, as a user has it."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import TextRun
from tests.ui.test_cli import run_here


def test_hide_look_and_remove(
    text_run: TextRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kiseki(*arguments: object) -> tuple[int, str, str]:
        return run_here(capsys, monkeypatch, *arguments)

    run = tmp_path / "run"
    shutil.copytree(text_run.run_dir / "export", run / "export")
    assert kiseki("index", run)[0] == 0
    (source, document_id), text = list(text_run.documents.items())[2]
    assert kiseki("trace", run, text[:200])[0] == 0
    code, out, _ = kiseki("tombstone", "finish", run)
    assert (code, out.split(";")[0]) == (0, "0 tombstones name 0 sequences")
    assert kiseki("tombstone", "add", run, "--document", source, document_id, "--reason", "asked")[0] == 0
    code, out, _ = kiseki("tombstone", "finish", run, "--dry-run")
    assert code == 0 and "1 tombstones name" in out and "would lose" in out
    code, out, err = kiseki("tombstone", "finish", run, "--json")
    done = json.loads(out)
    assert code == 0 and done["num_tokens"] > 0 and len(done["shards"]) == 1, err
    assert "removed 20" in kiseki("tombstone", "list", run)[1]
    code, _, err = kiseki("tombstone", "lift", run, "1", "--reason", "no")
    assert code == 2 and "removed for good" in err
    code, out, _ = kiseki("export", "verify", run)
    assert code == 0 and "have lost tokens to a takedown" in out and "the export holds" in out
    assert "devils-dictionary / " + document_id not in kiseki("trace", run, text[:200])[1]
