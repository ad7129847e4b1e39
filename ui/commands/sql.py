"""`kiseki sql`: statements of whoever owns the machine, with any number of rows."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from train_hooks.export_format.errors import InputError
from ui.commands.arguments import RunArgument, input_text
from ui.terminal import console
from ui.terminal.sql_format import SqlFormat

__all__ = ["sql_command"]


def sql_command(
    run: RunArgument,
    statement: Annotated[
        str | None, typer.Argument(help='Such as "SELECT * FROM steps"; `-` or nothing reads standard input.')
    ] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the statement from a file.")] = None,
    form: Annotated[SqlFormat, typer.Option("--format", help="How rows are written.")] = SqlFormat.TABLE,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write to a file, whole or not at all.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="List the tables and their columns.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Query the catalog of steps, sequences and documents.

    Tables: runs, attempts, steps, step_metrics, sequences, sequence_sources, segments, documents, shards, gaps. --schema
    lists their columns, docs/catalog.md says what they mean.
    """
    from indexer.reader import IndexReader
    from indexer.sql.queries import SCHEMA_SQL, batches
    from ui.terminal.table import write_rows

    form = SqlFormat.JSON if as_json else form
    reader = IndexReader.open(run)
    text = SCHEMA_SQL if schema else input_text(statement, file)
    width = console.output.width if output is None and sys.stdout.isatty() else None
    if form is SqlFormat.PARQUET and width is not None:
        raise InputError("Parquet is not for a terminal; give --output FILE, or redirect standard output")
    with batches(reader, text) as rows, _sink(output) as sink:
        num_rows = write_rows(rows, sink, form, terminal_width=width)
    if form is SqlFormat.TABLE and not schema:
        console.errors.print(f"{num_rows:,} row{'s' if num_rows != 1 else ''}", style="dim")


@contextlib.contextmanager
def _sink(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        with _quiet_when_nobody_reads():
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        return
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.rename(path)
    except OSError as error:
        raise InputError(f"--output: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet_when_nobody_reads() -> Iterator[None]:
    """As `… | head` does: what is left has nowhere to go."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
