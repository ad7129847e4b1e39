"""The figures of the benches over commits, as tables: `make bench-report`.

    python bench/report.py                    the last six runs of every bench
    python bench/report.py follow --runs 12   of one bench

A bench that was run with different options has a table for each. A column is one run: its commit (with a plus where the
working tree was changed), its date, and the cores of the machine. Figures of machines with other cores do not compare.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.support.history import HISTORY

Run = dict[str, Any]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", nargs="*", help="names of benches; all of them by default")
    parser.add_argument("--runs", type=int, default=6, help="columns of a table, the newest runs (%(default)s)")
    parser.add_argument("--history", type=Path, default=HISTORY, help=argparse.SUPPRESS)
    options = parser.parse_args()
    runs = [run for run in read_history(options.history) if not options.bench or run["bench"] in options.bench]
    if not runs:
        print("no run is in the history; a bench appends its figures when it is run")
    for title, of_bench in by_bench(runs).items():
        print(f"{title}\n{table(of_bench[-options.runs :])}\n")


def read_history(path: Path) -> list[Run]:
    """The lines of a history, the oldest first. Raises ValueError where a line is none, with its number."""
    runs = []
    for number, line in enumerate(path.read_text("utf-8").splitlines() if path.exists() else (), 1):
        try:
            run = json.loads(line)
            runs.append({name: run[name] for name in ("bench", "date", "commit", "cores", "options", "figures")})
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected a run of a bench in line {number}, found {line[:80]!r}") from error
    return sorted(runs, key=lambda run: str(run["date"]))


def by_bench(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs that compare, under the bench's name and options."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        options = ", ".join(f"{name} {value}" for name, value in run["options"].items())
        found.setdefault(f"{run['bench']} ({options})" if options else run["bench"], []).append(run)
    return dict(sorted(found.items()))


def table(runs: Sequence[Run]) -> str:
    """A line for each figure, a column for each run."""
    names = dict.fromkeys(name for run in runs for name in run["figures"])
    lines = [
        ["commit", *(str(run["commit"]) for run in runs)],
        ["date", *(str(run["date"])[:10] for run in runs)],
        ["cores", *("?" if run["cores"] is None else str(run["cores"]) for run in runs)],
    ]
    for name in names:
        units = {run["figures"][name]["unit"] for run in runs if name in run["figures"]}
        unit = f", {units.pop()}" if len(units) == 1 and "" not in units else ""
        lines.append([name + unit, *(_cell(run, name) for run in runs)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  "
        + f"{line[0]:<{widths[0]}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], widths[1:], strict=True))
        for line in lines
    )


def _cell(run: Run, name: str) -> str:
    """A figure to four digits; nothing where the run did not measure it."""
    value = run["figures"].get(name, {}).get("value")
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
