"""The layout of an LLM-jp dump, and reading it step by step.

    used_data_{fold}/used_data_{rank}.jsonl.gz     (or .jsonl)

A line is a sequence: `iteration`, `dataset_idx`, `dataset_name`, `doc_ids`, `text`, `token_ids`; other keys are not read. The
files of a rank are one stream, in the order of their folds. Lines of one iteration stand together. Where the iteration falls,
the training had gone back to an earlier model checkpoint: the lines from there on are a new attempt. An iteration other than
the last one or the next is believed of a line alone that is whole.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.corpora.files import HashedFile, Problems, lines_of, parse_line
from train_hooks.export_format.errors import InputError

__all__ = ["KEYS", "MAX_MISSING", "DumpFile", "DumpRow", "DumpStep", "Iterations", "dump_name", "list_dump", "steps_of"]

KEYS = ("iteration", "dataset_idx", "dataset_name", "doc_ids", "text", "token_ids")
_FILE = re.compile(r"used_data_([^/]+)/used_data_(\d+)\.jsonl(?:\.gz)?")
_ITERATION = re.compile(rb'"iteration"\s*:\s*(\d+)')
MAX_MISSING = 1_000_000
"""Iterations between two lines: each is a gap, of 100 µs and 2 KB a rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpFile:
    """One file of a dump; `name` is its path below it."""

    path: Path
    name: str
    fold: str
    rank: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class DumpRow:
    """A line that can be read. place: its file and number; tokens: i64 [n]."""

    place: str
    fold: str
    dataset_idx: int
    dataset_name: str
    doc_ids: tuple[int | str, ...]
    text: str
    tokens: npt.NDArray[np.int64]


@dataclass(kw_only=True, slots=True)
class DumpStep:
    """The lines of one iteration on one rank. attempt: from 0, one more where the iteration fell. bad: lines not read."""

    attempt: int
    iteration: int
    rows: list[DumpRow] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


def dump_name(fold: str, rank: int) -> str:
    """Path of a file below its dump."""
    return f"used_data_{fold}/used_data_{rank}.jsonl.gz"


def list_dump(directory: Path) -> dict[int, list[DumpFile]]:
    """The files of each rank, by fold. Raises InputError where there are none, or ranks are missing."""
    found: dict[int, list[DumpFile]] = {}
    for path in sorted(directory.glob("used_data_*/used_data_*")):
        name = path.relative_to(directory).as_posix()
        match = _FILE.fullmatch(name)
        if match is not None and path.is_file():
            file = DumpFile(path=path, name=name, fold=match[1], rank=int(match[2]), size_bytes=path.stat().st_size)
            found.setdefault(file.rank, []).append(file)
    if not found:
        raise InputError(f"{directory}: expected {dump_name('00', 0)} and others in it, found none")
    missing = sorted(set(range(max(found) + 1)) - found.keys())
    if missing:
        raise InputError(f"{directory}: expected files of ranks 0 to {max(found)}, found none of rank {missing[0]}")
    folds = {file.fold for files in found.values() for file in files}
    for rank, files in found.items():
        absent = sorted(folds - {file.fold for file in files})
        if absent or len(files) != len(folds):
            what = f"found no {dump_name(absent[0], rank)}" if absent else f"found a fold of rank {rank} twice"
            raise InputError(f"{directory}: expected a file of each fold for each rank, {what}; restore it")
    return {rank: sorted(found[rank], key=lambda file: (len(file.fold), file.fold)) for rank in sorted(found)}


class Iterations:
    """Which iteration each line of a rank is of, without parsing most of them."""

    def __init__(self) -> None:
        self._last: int | None = None

    def of(self, line: bytes, place: str) -> int | None:
        """None where the line says none that can be believed. Raises InputError where MAX_MISSING are left out before it."""
        match = _ITERATION.search(line)
        if match is None:
            return None
        found, last = int(match[1]), self._last
        if (last is None or found not in (last, last + 1)) and not _says(line, found):
            return None
        if last is not None and found > last + MAX_MISSING:
            raise InputError(
                f"{place}: expected an iteration behind {last}, at most {MAX_MISSING:,} later, found {found}; is the "
                "line damaged, or are files missing?"
            )
        self._last = found
        return found


def _says(line: bytes, iteration: int) -> bool:
    try:
        return bool(parse_line(line).get("iteration") == iteration)
    except ValueError:
        return False


def steps_of(
    files: Sequence[DumpFile], problems: Problems, advance: Callable[[int], None] | None = None
) -> Iterator[DumpStep]:
    """The steps of one rank. Lines that cannot be read belong to the step that they name, or stand in, or stand behind."""
    step: DumpStep | None = None
    iterations = Iterations()
    for file in files:
        lost = Problems()
        with HashedFile(file.path, advance) as stream:
            for number, line in lines_of(stream, file.name, lost):
                place = f"{file.name} line {number}"
                iteration = iterations.of(line, place)
                if iteration is None and step is not None:
                    iteration = step.iteration
                if iteration is None:
                    problems.add(f"{place}: expected a whole number in iteration, found none")
                    continue
                if step is None or iteration != step.iteration:
                    if step is not None:
                        yield step
                    fell = step is not None and iteration < step.iteration
                    attempt = 0 if step is None else step.attempt + fell
                    step = DumpStep(attempt=attempt, iteration=iteration)
                try:
                    step.rows.append(_row(place, file.fold, iteration, parse_line(line)))
                except ValueError as error:
                    step.bad.append(f"{place}: {error}")
                    problems.add(step.bad[-1])
        for what in lost.first:
            problems.add(what)
            if step is not None:
                step.bad.append(what)
    if step is not None:
        yield step


def _row(place: str, fold: str, iteration: int, record: dict[str, Any]) -> DumpRow:
    """Raises ValueError, which says what was found."""
    missing = [key for key in KEYS if key not in record]
    if missing:
        raise ValueError(f"expected keys {', '.join(KEYS)}, found no {', '.join(missing)}")
    if record["iteration"] != iteration:
        raise ValueError(f"expected one iteration, found {iteration} and {record['iteration']!r}")
    name, text, index = record["dataset_name"], record["text"], record["dataset_idx"]
    if not isinstance(name, str) or not isinstance(text, str) or type(index) is not int or not 0 <= index < 1 << 63:
        raise ValueError("expected texts in dataset_name and text and a whole number in dataset_idx")
    doc_ids = _doc_ids(record["doc_ids"])
    try:
        "".join((name, text, *map(str, doc_ids))).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair in dataset_name, doc_ids or text") from error
    return DumpRow(
        place=place, fold=fold, dataset_idx=index, dataset_name=name, doc_ids=doc_ids, text=text,
        tokens=_whole_numbers(record["token_ids"], "token_ids"),
    )  # fmt: skip


def _doc_ids(value: object) -> tuple[int | str, ...]:
    """LLM-jp's are numbers; those of exports of our own may be texts."""
    if not isinstance(value, list) or not all(type(item) is str or (type(item) is int and item >= 0) for item in value):
        raise ValueError(f"expected a list of ids in doc_ids, found {json.dumps(value)[:60]}")
    return tuple(value)


def _whole_numbers(value: object, key: str) -> npt.NDArray[np.int64]:
    try:
        found = np.array(value if isinstance(value, list) else None)
    except ValueError:
        found = np.array(None)
    if found.ndim != 1 or (len(found) and found.dtype.kind != "i") or (len(found) and int(found.min()) < 0):
        raise ValueError(f"expected a list of whole numbers in {key}, found {json.dumps(value)[:60]}")
    return found.astype(np.int64)
