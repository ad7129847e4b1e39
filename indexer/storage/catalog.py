"""Opening the catalog of a generation, read-only (`build.catalog` writes it)."""

from collections.abc import Iterable
from pathlib import Path

import duckdb

from indexer.storage.paths import IndexPaths

__all__ = ["PART_TABLES", "catalog_files", "connect_catalog", "sql_path"]

PART_TABLES = ("steps", "records", "sequences", "segments")


def connect_catalog(paths: IndexPaths, generation: int) -> duckdb.DuckDBPyConnection:
    """A read-only connection of the caller's own, which finds the parts wherever the index is now."""
    connection = duckdb.connect(str(paths.catalog(generation)), read_only=True)
    connection.execute("SET enable_progress_bar = false")  # it is printed to standard output
    connection.execute("SET VARIABLE kiseki_index = ?", [sql_path(str(paths.index.resolve()))])
    return connection


def catalog_files(paths: IndexPaths, parts: Iterable[str]) -> list[Path]:
    """The files that the views of a catalog over `parts` read, as the catalog names them: for who lets it read no others."""
    return [paths.part_dir(part).resolve() / f"{name}.parquet" for part in parts for name in PART_TABLES]


def sql_path(path: str) -> str:
    """A path as read_parquet takes it, which would read * ? [ in it as a pattern."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in path)
