"""The notebook of the examples is executed, cell by cell, in a kernel of its own against a real server."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from search_api import Settings
from tests.conftest import TextRun
from tests.support.live_server import live_server

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "trace.ipynb"


def test_every_cell_runs_and_shows_what_it_says(text_run: TextRun, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    assert all(not cell.get("outputs") for cell in notebook.cells)
    passage = next(iter(text_run.documents.values()))[40:240]
    with live_server(Settings(run_dirs=(text_run.run_dir,))) as url:
        monkeypatch.setenv("KISEKI_URL", url)
        monkeypatch.setenv("KISEKI_TEXT", passage)
        NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    shown = [cell.outputs[-1]["data"] if cell.outputs else {} for cell in notebook.cells if cell.cell_type == "code"]
    assert shown[0]["text/plain"].startswith("('text', ")
    assert "<mark" in shown[1]["text/html"] and "seen" in shown[1]["text/html"]
    assert "num_tokens" in shown[2]["text/html"]
    assert "text/a1/s" in shown[3]["text/plain"]
    exposures = [int(line.split()[1]) for line in shown[4]["text/plain"].splitlines()[:4]]
    assert exposures == sorted(exposures) and exposures[0] >= 1 and exposures[-1] == 2 * exposures[0]
    assert shown[5]["text/plain"].count("text/a1/s") == 2
