"""The `kiseki` command. Exit codes: 0 fine, 1 a check failed, 2 bad input, 3 incomplete."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from train_hooks.export_format.errors import KisekiError
from ui.demo import run_demo
from ui.doctor_command import doctor_command
from ui.document_command import document_command
from ui.export_commands import export_app
from ui.import_command import import_app
from ui.index_commands import index_command
from ui.query_commands import count_command, sequence_command, trace_command
from ui.render import safe
from ui.search_command import search_command
from ui.serve_commands import keys_app, serve_command
from ui.sql_command import sql_command
from ui.steps_commands import steps_app
from ui.tombstone_commands import tombstone_app

__all__ = ["app", "main"]

app = typer.Typer(
    name="kiseki",
    help="Records what a language model is trained on, and traces its outputs back to it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command("demo")
def demo_command(
    directory: Annotated[Path, typer.Argument(help="Where to put the demo run.")] = Path("demo-run"),
    steps: Annotated[int | None, typer.Option(help="Training steps; by default about a minute of them.", min=1)] = None,
) -> None:
    """Train a small model, and trace what it writes."""
    run_demo(directory, steps)


app.add_typer(export_app, name="export")
app.add_typer(import_app, name="import")
app.command("index")(index_command)
app.command("trace")(trace_command)
app.command("count")(count_command)
app.command("sequence")(sequence_command)
app.command("document")(document_command)
app.command("search")(search_command)
app.add_typer(steps_app, name="steps")
app.command("sql")(sql_command)


app.command("serve")(serve_command)
app.add_typer(keys_app, name="keys")
app.add_typer(tombstone_app, name="tombstone")
app.command("doctor")(doctor_command)


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
