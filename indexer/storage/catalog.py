"""Opening the catalog of a generation, read-only (`build.catalog` writes it)."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indexer.storage.paths import IndexPaths
from train_hooks.export_format.errors import QueryError

if TYPE_CHECKING:
    import duckdb

__all__ = ["PART_TABLES", "catalog_files", "connect_catalog", "rows_of_catalog", "sql_path"]

PART_TABLES = ("steps", "records", "sequences", "segments")


def connect_catalog(paths: IndexPaths, generation: int) -> "duckdb.DuckDBPyConnection":
    """A read-only connection of the caller's own, which finds the parts wherever the index is now."""
    import duckdb  # most questions to an index need none

    connection = duckdb.connect(str(paths.catalog(generation)), read_only=True)
    connection.execute("SET enable_progress_bar = false")  # it is printed to standard output
    connection.execute("SET VARIABLE kiseki_index = ?", [sql_path(str(paths.index.resolve()))])
    return connection


def rows_of_catalog(
    paths: IndexPaths, generation: int, statement: str, parameters: Sequence[Any] = ()
) -> list[dict[str, Any]]:
    """Rows of a trusted query, by column name. Raises QueryError where it does not run."""
    import duckdb

    with connect_catalog(paths, generation) as connection:
        try:
            result = connection.execute(statement, list(parameters))
            names = [column[0] for column in result.description or []]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
        except duckdb.Error as error:
            raise QueryError(f"SQL: {error}") from error


def catalog_files(paths: IndexPaths, parts: Iterable[str]) -> list[Path]:
    """The files that the views of a catalog over `parts` read, as the catalog names them: for who lets it read no others."""
    return [paths.part_dir(part).resolve() / f"{name}.parquet" for part in parts for name in PART_TABLES]


def sql_path(path: str) -> str:
    """A path as read_parquet takes it, which would read * ? [ in it as a pattern."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in path)
