"""The `kiseki` command.

Exit codes, of every command:

    0  found, or it holds
    1  nothing was found, or a check failed
    2  bad input: an argument, a directory or a query that cannot be used
    3  incomplete: what was asked for is not there yet, or a part of the index could not be searched
"""

import sys
from typing import Annotated, Any

import typer

from kiseki import __version__
from train_hooks.export_format.errors import KisekiError
from ui.lazy_commands import LazyCommand, LazyGroup
from ui.terminal.visible import safe

__all__ = ["app", "main"]

COMMANDS = (
    LazyCommand("demo", "ui.commands.demo:demo_command", "Train a small model, and trace what it writes."),
    LazyCommand("index", "ui.commands.index:index_command", "Index what the export holds by now."),
    LazyCommand("trace", "ui.commands.trace:trace_command", "Find where a text occurs in what was trained on."),
    LazyCommand("count", "ui.commands.trace:count_command", "Count how often exactly this text occurs."),
    LazyCommand("sequence", "ui.commands.trace:sequence_command", "Show one packed sequence as the model saw it."),
    LazyCommand(
        "document",
        "ui.commands.document:document_command",
        "Show when and where training saw a document, and how much of it.",
    ),
    LazyCommand(
        "search", "ui.commands.search:search_command", "Search the segments of documents that were trained on."
    ),
    LazyCommand("sql", "ui.commands.sql:sql_command", "Query the catalog of steps, sequences and documents."),
    LazyCommand("serve", "ui.commands.serve:serve_command", "Serve the pages and the API of runs."),
    LazyCommand(
        "doctor",
        "ui.commands.doctor:doctor_command",
        "Check this installation, and a run: what is wrong, and the way out.",
    ),
    LazyCommand("upgrade", "ui.commands.upgrade:upgrade_command", "Say what an upgrade of kiseki changes for a run."),
    LazyCommand(
        "export", "ui.commands.export:export_app", "The record itself: state, verification, repair, compaction."
    ),
    LazyCommand("import", "ui.commands.import_:import_app", "Take in what a trainer wrote elsewhere."),
    LazyCommand("steps", "ui.commands.steps:steps_app", "Steps with their loss, and what was special about one."),
    LazyCommand("keys", "ui.commands.serve:keys_app", "Keys to the API: who may ask what."),
    LazyCommand(
        "tombstone", "ui.commands.tombstone:tombstone_app", "Take rows, documents or spans out of every answer."
    ),
)


class _Kiseki(LazyGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes | {"commands": COMMANDS})


app = typer.Typer(
    name="kiseki",
    cls=_Kiseki,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kiseki {__version__}")
        raise typer.Exit


@app.callback()
def kiseki(
    version: Annotated[
        bool, typer.Option("--version", "-V", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Records what a language model is trained on, and traces its outputs back to it."""


def main() -> None:
    """Run the command line; every error that kiseki means is an exit code and one line, or more that point at a place.

    So is what the system refuses: a file that may not be read, a disk that is full.
    """
    try:
        app(prog_name="kiseki")
    except KisekiError as error:
        text = str(error) if error.points_at_a_place else " ".join(str(error).split())
        print(f"kiseki: {safe(text)}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:
        print(f"kiseki: {safe(str(error))}", file=sys.stderr)
        sys.exit(2)
