"""The figures of each run of a bench, kept as lines of bench/history.jsonl; `bench/report.py` shows them.

A line holds the bench's name, the date, the commit, the number of cores of the machine, the options that the bench was
given, and its figures with their units. Paths among the options are left out: they say nothing on another machine.
"""

import argparse
import datetime
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["HISTORY", "Figures", "append_figures", "bench_options", "recorded"]

ROOT = Path(__file__).resolve().parents[2]
HISTORY = ROOT / "bench" / "history.jsonl"


@dataclass(slots=True)
class Figures:
    """What a bench measured: a number and its unit, by name."""

    values: dict[str, tuple[float, str]] = field(default_factory=dict)

    def add(self, name: str, value: float, unit: str = "") -> None:
        """Keep a figure. unit: "s", "ms", "tokens/s" and the like; "" for a count or a ratio. Names do not repeat."""
        assert name not in self.values, f"{name} was measured twice"
        self.values[name] = (value, unit)


def bench_options(description: str | None) -> argparse.ArgumentParser:
    """A parser with the option that every bench has: `--no-history`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-history", action="store_true", help="do not append the figures to bench/history.jsonl")
    return parser


@contextmanager
def recorded(bench: str, options: argparse.Namespace) -> Iterator[Figures]:
    """Figures to fill in. They are appended to the history at the end, unless the bench failed or has `--no-history`."""
    figures = Figures()
    yield figures
    append_figures(bench, figures, options)


def append_figures(bench: str, figures: Figures, options: argparse.Namespace, path: Path = HISTORY) -> None:
    """Append one line to the history, unless it was declined or nothing was measured."""
    if options.no_history or not figures.values:
        return
    line = {
        "bench": bench,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "options": _kept(vars(options)),
        "figures": {name: {"value": _rounded(value), "unit": unit} for name, (value, unit) in figures.values.items()},
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(f"{len(figures.values)} figures appended to {path.name}", file=sys.stderr)


def _kept(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that change what is measured."""
    return {
        name: value
        for name, value in options.items()
        if name != "no_history" and value is not None and isinstance(value, bool | int | float | str | list)
    }


def _rounded(value: float) -> float | None:
    """Five digits, which is more than any of these figures repeats to; counts whole, and nothing for no number."""
    if isinstance(value, int):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _commit() -> str:
    """The commit that was measured; with a plus where the working tree has other changes than the history's."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    changed = git("status", "--porcelain", "--", ".", ":(exclude)bench/history.jsonl")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")
