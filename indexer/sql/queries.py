"""SQL over the catalog for whoever owns the machine: `kiseki sql`, notebooks, our own code. For others: sql_sandbox."""

from collections.abc import Iterator
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from indexer.reader import IndexReader
from train_hooks.export_format.errors import QueryError

__all__ = ["SCHEMA_SQL", "SqlError", "batches"]

BATCH_ROWS = 8192
SCHEMA_SQL = r"""
SELECT table_name AS "view", column_name AS "column", data_type AS "type" FROM duckdb_columns()
WHERE NOT internal AND NOT regexp_matches(table_name, '^(all|stored)_|_table$')
ORDER BY table_name, column_index"""


class SqlError(QueryError):
    """A statement that DuckDB refuses. The message is DuckDB's, with its lines."""

    points_at_a_place = True

    def __init__(self, message: str) -> None:
        super().__init__(f"SQL: {message}")


@contextmanager
def batches(reader: IndexReader, statements: str) -> Iterator[pa.RecordBatchReader]:
    """The rows of the last of `statements`, as a stream of record batches; the others are run before it.

    Rows are made as they are read, so any number of them fits into memory. Raises SqlError, also while rows are read.
    """
    with reader.catalog() as connection:
        try:
            connection.execute("SET python_enable_replacements = false; SET enable_progress_bar = false")
            parsed = connection.extract_statements(statements)
            if not parsed:
                raise SqlError("expected an SQL statement, found none")
            for statement in parsed[:-1]:
                connection.execute(statement)
            yield _stream(connection, parsed[-1])
        except duckdb.Error as error:
            raise SqlError(str(error)) from error


def _stream(connection: duckdb.DuckDBPyConnection, statement: duckdb.Statement) -> pa.RecordBatchReader:
    if statement.type == duckdb.StatementType.SELECT:
        return connection.sql(statement.query).to_arrow_reader(BATCH_ROWS)
    result = connection.execute(statement)
    names = [column[0] for column in result.description or []]
    rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    table = pa.table({name: pa.array([row[name] for row in rows]) for name in names})
    return table.to_reader(BATCH_ROWS)
