"""Metrics that a trainer wrote elsewhere, kept beside the export and shown in the catalog's `step_metrics`.

RUN/imported_metrics/<16 hex digits>.parquet holds the numbers of one file; the digits are those of the SHA-256 of its path,
its `origin`. The export is not touched, and an index that is thrown away finds them again.

1. A file of the same bytes is imported once, whatever its path. A file that has grown takes the place of what was imported
   of it before.
2. Which attempt a number belongs to is decided when a catalog is written, of the attempts that have its step: with a time,
   the newest that had started by then; without one, or where none had, the canonical one, or else the newest.
3. Where a file says a number twice for one step of one attempt, the later line counts.
4. Numbers of steps that are not indexed are kept, and shown once they are.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from indexer.durable import replaced_file, sha256_of, sha256_of_file
from indexer.metrics.files import read_csv, read_json_lines
from indexer.metrics.rows import METRIC_SCHEMA, MetricRows
from indexer.metrics.tensorboard import looks_like_events, read_events
from indexer.storage.paths import IndexPaths
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.reading.reader import RunReader

__all__ = ["ImportedFile", "import_metrics", "insert_imported_metrics", "newest_import_unix_s"]

_READERS: dict[str, Callable[[Path], MetricRows]] = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedFile:
    """What became of one file. known: the same bytes were imported before; then nothing was done.

    problems: lines or records that could not be read, the first 20 of num_problems; the others of the file were.
    """

    origin: str
    known: bool
    num_values: int
    num_steps: int
    first_step: int | None
    last_step: int | None
    names: tuple[str, ...]
    problems: tuple[str, ...]
    num_problems: int
    notes: tuple[str, ...]


def import_metrics(run_dir: Path | str, files: Sequence[Path], *, step_offset: int = 0) -> list[ImportedFile]:
    """Import TensorBoard event files, CSV and JSON-lines files, and the event files below directories.

    step_offset is added to every step, for trainers that count from 0. Raises RunError where `run_dir` is no run, InputError
    for a file that is not there, is none of these, or holds no number at all; files before it are imported by then.
    """
    paths = IndexPaths(RunReader(run_dir).paths.run_dir)
    return [_import(paths, path, step_offset) for file in files for path in _event_files(file)]


def _event_files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    found = sorted(item for item in path.rglob("*tfevents*") if item.is_file())
    if not found:
        raise InputError(f"{path}: expected event files (*tfevents*) in the directory, found none")
    yield from found


def _import(paths: IndexPaths, path: Path, step_offset: int) -> ImportedFile:
    try:
        identity = {b"kiseki.sha256": sha256_of_file(path).encode(), b"kiseki.step_offset": str(step_offset).encode()}
        for stored in _stored(paths):
            if identity.items() <= (pq.read_schema(stored).metadata or {}).items():
                table = pq.read_table(stored)
                return _report(table, MetricRows(), known=True)
        rows = _reader_of(path)(path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error}") from error
    if not rows.steps:
        why = f": {rows.problems[0]}" if rows.problems else ""
        raise InputError(f"{path}: expected metrics by step, found none{why}")
    origin = str(path.resolve())
    table = rows.table(step_offset).replace_schema_metadata({**identity, b"kiseki.origin": origin.encode()})
    _store(paths.imported_metrics / f"{sha256_of(origin.encode())[:16]}.parquet", table)
    return _report(table, rows, known=False)


def _reader_of(path: Path) -> Callable[[Path], MetricRows]:
    if "tfevents" in path.name or (path.suffix not in _READERS and looks_like_events(path)):
        return read_events
    if path.suffix not in _READERS:
        raise InputError(f"{path}: expected a TensorBoard event file, .csv, .tsv, .jsonl or .ndjson")
    return _READERS[path.suffix]


def _store(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}")
    with replaced_file(path, unfinished=unfinished) as file:
        pq.write_table(table, file, compression="zstd")


def _stored(paths: IndexPaths) -> list[Path]:
    return sorted(paths.imported_metrics.glob("*.parquet"))


def _report(table: pa.Table, rows: MetricRows, *, known: bool) -> ImportedFile:
    steps, names = table.column("step").unique(), table.column("name").unique()
    limits = pa.compute.min_max(steps).as_py()
    return ImportedFile(
        origin=table.schema.metadata[b"kiseki.origin"].decode(),
        known=known,
        num_values=table.num_rows,
        num_steps=len(steps),
        first_step=limits["min"],
        last_step=limits["max"],
        names=tuple(sorted(names.to_pylist())),
        problems=tuple(rows.problems),
        num_problems=rows.num_problems,
        notes=tuple(rows.notes),
    )


def newest_import_unix_s(paths: IndexPaths) -> float:
    """When something was imported last; 0 where nothing was."""
    try:
        return paths.imported_metrics.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def insert_imported_metrics(connection: duckdb.DuckDBPyConnection, paths: IndexPaths) -> None:
    """Fill a new catalog's table `imported_metric_table`, given its views `attempts` and `steps`."""
    schema, tables = METRIC_SCHEMA.append(pa.field("origin", pa.string())), []
    for path in _stored(paths):
        table = pq.read_table(path)
        origin = table.schema.metadata[b"kiseki.origin"].decode()
        table = table.append_column(schema.field("origin"), pa.array([origin] * table.num_rows, pa.string()))
        tables.append(table.cast(schema))
    if not tables:
        return
    connection.register("imported", pa.concat_tables(tables))
    connection.execute(
        """WITH candidates AS (
               SELECT m.*, s.attempt, s.canonical, coalesce(epoch(a.started) <= m.unix_time_s, false) AS had_started
               FROM imported m
               JOIN (SELECT attempt, global_step, canonical FROM steps) s ON s.global_step = m.step
               JOIN attempts a ON a.attempt = s.attempt
           ), assigned AS (
               SELECT * FROM candidates QUALIFY row_number() OVER (
                   PARTITION BY origin, position
                   ORDER BY had_started DESC, CASE WHEN had_started THEN attempt END DESC, canonical DESC, attempt DESC) = 1
           )
           INSERT INTO imported_metric_table
           SELECT attempt, step, unix_time_s, name, value, origin FROM assigned
           QUALIFY row_number() OVER (PARTITION BY attempt, step, name, origin ORDER BY position DESC) = 1
           ORDER BY step, attempt, origin, name"""
    )
    connection.unregister("imported")
