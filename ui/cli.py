"""The `kiseki` command. Exit codes: 0 fine, 1 a check failed, 2 bad input, 3 incomplete."""

import sys
from typing import Any

import typer

from train_hooks.export_format.errors import KisekiError
from ui.lazy_commands import LateCommand, LateGroup
from ui.terminal.visible import safe

__all__ = ["app", "main"]

COMMANDS = (
    LateCommand("demo", "ui.commands.demo:demo_command", "Train a small model, and trace what it writes."),
    LateCommand("index", "ui.commands.index:index_command", "Index what the export holds by now."),
    LateCommand("trace", "ui.commands.trace:trace_command", "Find where a text occurs in what was trained on."),
    LateCommand("count", "ui.commands.trace:count_command", "Count how often exactly this text occurs."),
    LateCommand("sequence", "ui.commands.trace:sequence_command", "Show one packed sequence as the model saw it."),
    LateCommand(
        "document",
        "ui.commands.document:document_command",
        "Show when and where training saw a document, and how much of it.",
    ),
    LateCommand(
        "search", "ui.commands.search:search_command", "Search the segments of documents that were trained on."
    ),
    LateCommand("sql", "ui.commands.sql:sql_command", "Query the catalog of steps, sequences and documents."),
    LateCommand("serve", "ui.commands.serve:serve_command", "Serve the pages and the API of runs."),
    LateCommand(
        "doctor",
        "ui.commands.doctor:doctor_command",
        "Check this installation, and a run: what is wrong, and the way out.",
    ),
    LateCommand("upgrade", "ui.commands.upgrade:upgrade_command", "Say what an upgrade of kiseki changes for a run."),
    LateCommand(
        "export", "ui.commands.export:export_app", "The record itself: state, verification, repair, compaction."
    ),
    LateCommand("import", "ui.commands.import_:import_app", "Take in what a trainer wrote elsewhere."),
    LateCommand("steps", "ui.commands.steps:steps_app", "Steps with their loss, and what was special about one."),
    LateCommand("keys", "ui.commands.serve:keys_app", "Keys to the API: who may ask what."),
    LateCommand(
        "tombstone", "ui.commands.tombstone:tombstone_app", "Take rows, documents or spans out of every answer."
    ),
)


class _Kiseki(LateGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes | {"commands": COMMANDS})


app = typer.Typer(
    name="kiseki", cls=_Kiseki, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.callback()
def kiseki() -> None:
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
