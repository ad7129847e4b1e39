"""`kiseki tombstone`: what no answer may show."""

import dataclasses
import datetime
from typing import Annotated

import typer

from indexer.index_reader import IndexReader
from indexer.paths import IndexPaths
from indexer.tombstones import TombstoneFile
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.reader import RunReader
from ui import console
from ui.arguments import JsonOption, RunArgument

__all__ = ["tombstone_app"]

tombstone_app = typer.Typer(
    help="Take rows, documents or spans out of every answer.", no_args_is_help=True, rich_markup_mode=None
)
ReasonOption = Annotated[str, typer.Option(help="Why; it is kept.")]


@tombstone_app.command("add")
def add_command(
    run: RunArgument,
    reason: ReasonOption,
    document: Annotated[
        tuple[str, str] | None, typer.Option(help="SOURCE and DOCUMENT_ID: the document wherever it was consumed.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="A sequence, such as run/a1/s120/r3/m0/q5.")] = None,
    tokens: Annotated[str | None, typer.Option(help="With --address: tokens A:B of it alone, B not included.")] = None,
) -> None:
    """Hide a document, a sequence, or tokens of a sequence, from now on."""
    reader = IndexReader.open(run)
    start, end = _tokens(tokens)
    if address is not None:
        reader.locate(address)
    source, document_id = document if document is not None else (None, None)
    added = TombstoneFile(reader.paths).add(
        reason=reason, address=address, start=start, end=end, source=source, document_id=document_id
    )
    console.output.print(f"tombstone {added.number}: {added.what}", markup=False)


@tombstone_app.command("list")
def list_command(run: RunArgument, as_json: JsonOption = False) -> None:
    """List all tombstones, lifted ones too."""
    found = _file(run).read()
    if as_json:
        console.print_json([dataclasses.asdict(item) for item in found])
        return
    for item in found:
        lifted = f"; lifted {_time(item.lifted_unix_s)}: {item.lift_reason}" if item.lifted_unix_s is not None else ""
        console.output.print(
            f"{item.number}  {_time(item.created_unix_s)}  {item.what}: {item.reason}{lifted}", markup=False
        )


@tombstone_app.command("lift")
def lift_command(
    run: RunArgument, number: Annotated[int, typer.Argument(help="As `list` shows it.")], reason: ReasonOption
) -> None:
    """End a tombstone; it stays on record."""
    lifted = _file(run).lift(number, reason=reason)
    console.output.print(f"tombstone {lifted.number} is lifted: {lifted.what}", markup=False)


def _file(run: RunArgument) -> TombstoneFile:
    return TombstoneFile(IndexPaths(RunReader(run).paths.run_dir))


def _tokens(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    start, _, end = text.partition(":")
    if not (start.isdigit() and end.isdigit()):
        raise InputError(f"--tokens: expected A:B such as 10:25, found {text!r}")
    return int(start), int(end)


def _time(unix_s: float) -> str:
    return f"{datetime.datetime.fromtimestamp(unix_s, datetime.UTC):%Y-%m-%d %H:%M} UTC"
