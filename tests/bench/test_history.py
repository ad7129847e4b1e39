"""The history of the benches: what a run appends, what is left out, and how the report shows it."""

import argparse
import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.report import by_bench, read_history, table
from bench.support import history
from bench.support.history import HISTORY, Figures, append_figures, bench_options, recorded

BENCH = Path(__file__).resolve().parents[2] / "bench"
OPTIONS = argparse.Namespace(steps=1e6, run=Path("/somewhere/run"), only=None, jobs=2, no_history=False)


def measured(latency_ms: float = 12.34567) -> Figures:
    figures = Figures()
    figures.add("latency", latency_ms, "ms")
    figures.add("rows", 1_234_567)
    return figures


def test_a_run_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    append_figures("steps", measured(), OPTIONS, path)
    [line] = path.read_text("utf-8").splitlines()
    run = json.loads(line)
    assert run["figures"] == {"latency": {"value": 12.346, "unit": "ms"}, "rows": {"value": 1_234_567, "unit": ""}}
    assert (run["bench"], run["cores"], run["options"]) == ("steps", os.cpu_count(), {"steps": 1e6, "jobs": 2})
    assert run["date"].startswith("20") and run["commit"] and "somewhere" not in line


def test_a_run_that_is_declined_or_fails_leaves_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "history.jsonl"
    append_figures("steps", measured(), bench_options("x").parse_args(["--no-history"]), path)
    append_figures("steps", Figures(), OPTIONS, path)
    monkeypatch.setattr(history, "append_figures", lambda *_: pytest.fail("a failed run was kept"))
    with pytest.raises(ZeroDivisionError), recorded("steps", OPTIONS) as figures:
        figures.add("ratio", 1 / 0)
    assert not path.exists()


def test_a_figure_is_measured_once() -> None:
    with pytest.raises(AssertionError, match="rows was measured twice"):
        measured().add("rows", 1)


def test_the_report_has_a_table_for_each_bench_and_its_options(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for latency_ms in (12.34567, float("nan"), 98765.4):
        append_figures("steps", measured(latency_ms), OPTIONS, path)
    append_figures("steps", measured(1), argparse.Namespace(steps=10, no_history=False), path)
    found = by_bench(read_history(path))
    assert list(found) == ["steps (steps 10)", "steps (steps 1000000.0, jobs 2)"]
    lines = [line.split() for line in table(found["steps (steps 1000000.0, jobs 2)"]).splitlines()]
    assert lines[0][0] == "commit" and lines[2] == ["cores", *[str(os.cpu_count())] * 3]
    assert lines[3] == ["latency,", "ms", "12.35", "98,765"] and lines[4] == ["rows", *["1,234,567"] * 3]


def test_a_line_that_is_no_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    assert read_history(path) == []
    append_figures("steps", measured(), OPTIONS, path)
    path.write_text(path.read_text("utf-8") + '{"proof": "old"}\n', "utf-8")
    with pytest.raises(ValueError, match=r"expected a run of a bench in line 2, found .*old"):
        read_history(path)


def test_the_history_that_is_kept_can_be_shown() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / "report.py"), "proofs damage"], capture_output=True, text=True, check=True
    )
    assert "proofs damage (seed 1, jobs 2)" in done.stdout and "missed" in done.stdout
    assert read_history(HISTORY)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(BENCH.glob("*.py")) if path.stem != "report"],
    ids=lambda path: path.stem,
)
def test_every_bench_keeps_its_figures_and_can_be_told_not_to(path: Path) -> None:
    calls = {
        node.func.id
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert "bench_options" in calls and calls & {"recorded", "append_figures"}
