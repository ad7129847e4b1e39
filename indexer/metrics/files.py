"""Metrics of CSV and JSON-lines files: one line a step, or a step in several lines.

The step is in a column `step`, `global_step`, `_step`, `iteration` or `iter`; a time, if there is one, in `unix_time_s`,
`wall_time`, `Wall time`, `timestamp` or `_timestamp`, in seconds since 1970 or as ISO 8601 with a zone. Case does not matter.
Every other column or key is a metric. Objects in objects are joined by `/`. What is empty, null, a text or a truth value is no
metric; in a CSV file a column is one of texts if its first cell that is not empty is no number.
"""

import csv
import datetime
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from indexer.metrics.rows import MetricRows
from train_hooks.export_format.errors import InputError

__all__ = ["read_csv", "read_json_lines"]

STEP_NAMES = ("global_step", "step", "_step", "iteration", "iter")
TIME_NAMES = ("unix_time_s", "wall_time", "wall time", "_timestamp", "timestamp")


def read_csv(path: Path) -> MetricRows:
    """The numbers of a file. Raises InputError where it has no column of steps, or is no text."""
    rows = MetricRows()
    for number, cells in _csv_lines(path, rows):
        _add_line(rows, f"{path.name} line {number}", cells)
    return rows


def read_json_lines(path: Path) -> MetricRows:
    """The numbers of a file of one object a line. Raises InputError where it is no text."""
    rows = MetricRows()
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    _add_object(rows, f"{path.name} line {number}", line)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found other bytes: {error}") from error
    return rows


def _csv_lines(path: Path, rows: MetricRows) -> Iterator[tuple[int, dict[str, float | str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            reader = csv.reader(file, delimiter="\t" if "\t" in first and "," not in first else ",", strict=True)
            header = [name.strip() for name in next(reader, [])]
            if _find(header, STEP_NAMES) is None:
                raise InputError(
                    f"{path}: expected a column {' or '.join(STEP_NAMES)}, found {', '.join(header) or 'none'}"
                )
            twice = next((name for number, name in enumerate(header) if name in header[:number]), None)
            if twice is not None:
                raise InputError(f"{path}: expected columns of different names, found {twice!r} twice")
            is_text: dict[str, bool] = {}
            for cells in reader:
                if len(cells) != len(header):
                    if cells:
                        rows.problem(
                            f"{path.name} line {reader.line_num}: expected {len(header)} cells, found {len(cells)}"
                        )
                    continue
                yield reader.line_num, _numbers(dict(zip(header, cells, strict=True)), is_text)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8 text, found other bytes: {error}") from error
    except csv.Error as error:
        rows.problem(f"{path.name}: {error}; the rest is not read")


def _numbers(cells: Mapping[str, str], is_text: dict[str, bool]) -> dict[str, float | str]:
    """Cells that are not empty, as numbers where they are; columns of texts are left out."""
    found: dict[str, float | str] = {}
    for name, cell in cells.items():
        if not cell.strip():
            continue
        number = _number(cell)
        if name.casefold() not in (*STEP_NAMES, *TIME_NAMES):
            is_text.setdefault(name, number is None)
        if not is_text.get(name, False):
            found[name] = cell if number is None else number
    return found


def _add_object(rows: MetricRows, place: str, line: str) -> None:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        rows.problem(f"{place}: expected a JSON object, {error}")
        return
    if not isinstance(document, dict):
        rows.problem(f"{place}: expected a JSON object, found {type(document).__name__}")
        return
    flat = dict(_flattened(document, ""))
    times = {
        name: value for name, value in document.items() if name.casefold() in TIME_NAMES and isinstance(value, str)
    }
    _add_line(rows, place, {**flat, **times})


def _flattened(document: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in document.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name, value


def _add_line(rows: MetricRows, place: str, cells: Mapping[str, float | str]) -> None:
    names = list(cells)
    step_name, time_name = _find(names, STEP_NAMES), _find(names, TIME_NAMES)
    step = None if step_name is None else _whole(cells[step_name])
    if step is None:
        rows.problem(
            f"{place}: expected a whole number of the step, found {'none' if step_name is None else cells[step_name]}"
        )
        return
    time = None if time_name is None else _time(cells[time_name])
    if time_name is not None and time is None:
        rows.problem(
            f"{place}: expected seconds since 1970 or ISO 8601 with a zone in {time_name}, found {cells[time_name]!r}"
        )
        return
    for name, value in cells.items():
        if name in (step_name, time_name):
            continue
        if isinstance(value, str):
            rows.problem(f"{place}: expected a number in {name}, found {value!r}")
        else:
            rows.add(step, time, name, float(value))


def _find(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    by_name = {name.casefold(): name for name in reversed(names)}
    return next((by_name[name] for name in wanted if name in by_name), None)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _whole(value: float | str) -> int | None:
    is_whole = not isinstance(value, str) and math.isfinite(value) and value == int(value) and abs(value) < 1 << 62
    return int(value) if is_whole else None


def _time(value: float | str) -> float | None:
    if not isinstance(value, str):
        return value if math.isfinite(value) else None
    try:
        time = datetime.datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    return time.timestamp() if time.tzinfo is not None else None
