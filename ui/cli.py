"""The `kiseki` command. Exit codes: 0 fine, 1 a check failed, 2 bad input, 3 incomplete."""

import sys
from typing import Any

import typer

from train_hooks.export_format.errors import KisekiError
from ui.late_commands import LateCommand, LateGroup
from ui.visible import safe

__all__ = ["app", "main"]

COMMANDS = (
    LateCommand("demo", "ui.demo_command:demo_command", "Train a small model, and trace what it writes."),
    LateCommand("index", "ui.index_commands:index_command", "Index what the export holds by now."),
    LateCommand("trace", "ui.query_commands:trace_command", "Find where a text occurs in what was trained on."),
    LateCommand("count", "ui.query_commands:count_command", "Count how often exactly this text occurs."),
    LateCommand("sequence", "ui.query_commands:sequence_command", "Show one packed sequence as the model saw it."),
    LateCommand(
        "document",
        "ui.document_command:document_command",
        "Show when and where training saw a document, and how much of it.",
    ),
    LateCommand("search", "ui.search_command:search_command", "Search the segments of documents that were trained on."),
    LateCommand("sql", "ui.sql_command:sql_command", "Query the catalog of steps, sequences and documents."),
    LateCommand("serve", "ui.serve_commands:serve_command", "Serve the pages and the API of runs."),
    LateCommand(
        "doctor",
        "ui.doctor_command:doctor_command",
        "Check this installation, and a run: what is wrong, and the way out.",
    ),
    LateCommand("upgrade", "ui.upgrade_command:upgrade_command", "Say what an upgrade of kiseki changes for a run."),
    LateCommand(
        "export", "ui.export_commands:export_app", "The record itself: state, verification, repair, compaction."
    ),
    LateCommand("import", "ui.import_command:import_app", "Take in what a trainer wrote elsewhere."),
    LateCommand("steps", "ui.steps_commands:steps_app", "Steps with their loss, and what was special about one."),
    LateCommand("keys", "ui.serve_commands:keys_app", "Keys to the API: who may ask what."),
    LateCommand(
        "tombstone", "ui.tombstone_commands:tombstone_app", "Take rows, documents or spans out of every answer."
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
