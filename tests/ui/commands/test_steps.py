"""`kiseki steps` as a user has it: chart, table, JSON, spikes, explanation; and the chart against its own promises."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import TextRun
from tests.indexer.steps.test_steps import run_with_a_rollback
from tests.ui.test_cli import PROGRAM, run_here
from ui.terminal.steps_chart import LABEL, chart

Captured = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def rollback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("steps") / "run"
    run_with_a_rollback(run_dir)
    return run_dir


def test_chart_and_table(rollback: Path, capsys: Captured, monkeypatch: Patch) -> None:
    code, out, err = run_here(capsys, monkeypatch, "steps", rollback)
    assert (code, err) == (0, "")
    assert out.startswith("loss\n") and "grad_norm\n" in out and "▲" in out
    assert "55 steps; 35 before these" in out and "loss ×" in out and "superseded" not in out
    assert run_here(capsys, monkeypatch, "steps", "show", rollback) == (0, out, "")
    code, out, _ = run_here(capsys, monkeypatch, "steps", rollback, "--steps", "45:47", "--all-steps")
    assert code == 0 and out.count("superseded") == 2 and "4 steps" in out


def test_spikes_and_json(rollback: Path, capsys: Captured, monkeypatch: Patch) -> None:
    code, out, _ = run_here(capsys, monkeypatch, "steps", rollback, "--spikes", "--json")
    document = json.loads(out)
    assert code == 0 and [step["global_step"] for step in document["steps"]] == [52, 54]
    assert document["steps"][1]["loss"] == "nan" and document["run_id"] == "r"
    code, out, _ = run_here(capsys, monkeypatch, "steps", rollback, "--attempt", "1", "--spikes", "--json")
    assert [(step["global_step"], step["canonical"]) for step in json.loads(out)["steps"]] == [(45, False)]


def test_explanation_of_a_step(text_run: TextRun, capsys: Captured, monkeypatch: Patch) -> None:
    step = str(text_run.num_steps)
    code, out, err = run_here(capsys, monkeypatch, "steps", "explain", text_run.run_dir, step, "--window", "5")
    assert (code, err) == (0, "")
    assert f"step {step} of attempt 1" in out and "the step in the mean:" in out and "sources differ" in out
    code, out, _ = run_here(capsys, monkeypatch, "steps", "explain", text_run.run_dir, step, "--json", "--limit", "2")
    document = json.loads(out)
    assert code == 0 and document["num_sequences"] == 4 and len(document["ngrams"]) <= 2
    assert document["features"][0]["name"]


def test_bad_input_is_one_line(rollback: Path, capsys: Captured, monkeypatch: Patch) -> None:
    for arguments, expected in (
        (["steps", rollback, "--steps", "abc"], "A:B"),
        (["steps", rollback, "--attempt", "9"], "attempt of [1, 2]"),
        (["steps", "explain", rollback, "1"], "no step before it"),
        (["steps", "explain", rollback, "77"], "indexed step up to 55"),
        (["steps", rollback / "missing"], "is not a run directory"),
    ):
        code, out, err = run_here(capsys, monkeypatch, *arguments)
        assert (code, out) == (2, "") and expected in err and len(err.strip().splitlines()) == 1, (arguments, err)


def test_a_narrow_pipe_without_colour(rollback: Path) -> None:
    """A real process on a real terminal, 60 wide; NO_COLOR leaves no colour, but what is dim or bold may be."""
    script = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    environment = {**os.environ, "COLUMNS": "60", "LINES": "40", "NO_COLOR": "1", "TERM": "xterm-256color"}
    command = [sys.executable, "-c", script, str(PROGRAM), "steps", str(rollback)]
    done = subprocess.run(
        command, env=environment, capture_output=True, timeout=60, check=True, stdin=subprocess.DEVNULL
    )
    lines = re.sub("\x1b\\[[0-9;]*m", "", done.stdout.decode()).replace("\r", "").split("\n")
    drawn = [line for line in lines if "│" in line or "▲" in line]
    assert drawn and all(len(line) <= 60 for line in drawn)
    codes = re.findall(rb"\x1b\[([0-9;]*)m", done.stdout)
    assert {code for found in codes for code in found.split(b";")} <= {b"", b"0", b"1", b"2"}


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 130), st.integers(2, 10), st.integers(2, 3000), st.integers(0, 10**6))
def test_a_spike_of_one_step_reaches_the_top_line(width: int, rows: int, num: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.random(num)
    place = int(rng.integers(num))
    values[place] = 50.0
    if num > 3:
        values[(place + 2) % num] = math.nan
    lines = chart("loss", range(1, num + 1), values.tolist(), {place + 1}, width=width, rows=rows)
    assert all(len(line) <= width for line in lines) and len(lines) == rows + 3
    top = lines[1].split("│")[1]
    column = min(width - LABEL - 3, place * (width - LABEL - 2) // max(1, num - 1))
    marks = [i for i, dots in enumerate(top) if dots != "\u2800"]
    assert marks and min(abs(mark - column) for mark in marks) <= 1
    assert (lines[-2].index("▲") - LABEL - 2 - column) in (-1, 0, 1)
    if num > 10 and rows > 2:
        assert any(dots != "\u2800" for dots in lines[rows].split("│")[1]), "the noise is at the bottom"
