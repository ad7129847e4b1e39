"""`kiseki tombstone`: what no answer may show."""

import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from train_hooks.export_format.errors import InputError
from ui.commands.arguments import JsonOption, RunArgument
from ui.terminal import console

if TYPE_CHECKING:
    from indexer.selection.tombstones import TombstoneFile

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
    from indexer.reader import IndexReader
    from indexer.selection.tombstones import TombstoneFile

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
    from indexer.answers.plain_data import plain_data

    found = _file(run).read()
    if as_json:
        console.print_json(plain_data(found))
        return
    for item in found:
        removed = f"; removed {_time(item.removed_unix_s)}" if item.removed_unix_s is not None else ""
        lifted = f"; lifted {_time(item.lifted_unix_s)}: {item.lift_reason}" if item.lifted_unix_s is not None else ""
        console.output.print(
            f"{item.number}  {_time(item.created_unix_s)}  {item.what}: {item.reason}{lifted}{removed}", markup=False
        )


@tombstone_app.command("lift")
def lift_command(
    run: RunArgument, number: Annotated[int, typer.Argument(help="As `list` shows it.")], reason: ReasonOption
) -> None:
    """End a tombstone; it stays on record."""
    lifted = _file(run).lift(number, reason=reason)
    console.output.print(f"tombstone {lifted.number} is lifted: {lifted.what}", markup=False)


@tombstone_app.command("finish")
def finish_command(
    run: RunArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; change nothing.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Shards built side by side.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Remove what the tombstones in force hide from export and index, for good. It cannot be undone."""
    from indexer.answers.plain_data import plain_data
    from indexer.build.update import IndexOptions
    from indexer.takedown import finish_takedown

    with console.progress("reading files of the export") as progress:
        done = finish_takedown(run, IndexOptions(jobs=jobs), dry_run=dry_run, progress=progress)
    if as_json:
        console.print_json(plain_data(done))
        return
    would = "would lose" if dry_run else "lost"
    console.output.print(
        f"{done.tombstones} tombstones name {done.num_rows:,} sequences; {done.num_files:,} files of the export {would} "
        f"{done.num_tokens:,} tokens, {len(done.shards)} shards of the index {'would be' if dry_run else 'were'} built again",
        markup=False,
    )


def _file(run: RunArgument) -> "TombstoneFile":
    from indexer.selection.tombstones import TombstoneFile
    from indexer.storage.paths import IndexPaths
    from train_hooks.export_format.reading.reader import RunReader

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
