"""`kiseki import …`: what trainers wrote elsewhere."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from indexer.imported_metrics import ImportedFile, import_metrics
from ui import console
from ui.arguments import JsonOption, RunArgument
from ui.render import plural, safe

__all__ = ["import_app"]

import_app = typer.Typer(no_args_is_help=True, help="Take in what a trainer wrote elsewhere.", rich_markup_mode=None)


@import_app.command("metrics")
def metrics_command(
    run: RunArgument,
    files: Annotated[
        list[Path],
        typer.Argument(help="TensorBoard event files or directories of them, CSV, JSON lines.", show_default=False),
    ],
    step_offset: Annotated[
        int, typer.Option(help="Added to every step; 1 for a trainer that counts steps from 0.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Import metrics by step from files; they appear in the catalog's step_metrics, with their file as origin.

    Exit code 1: some lines could not be read; they are named, and the others are imported.
    """
    done = import_metrics(run, files, step_offset=step_offset)
    if as_json:
        console.print_json([dataclasses.asdict(item) for item in done])
    else:
        for item in done:
            _print(item)
        if not all(item.known for item in done):
            console.output.print(f"run `kiseki index {run}` to see them in the catalog", markup=False)
    for item in done:
        for problem in item.problems:
            console.errors.print(Text(safe(problem)))
        if item.num_problems > len(item.problems):
            console.errors.print(f"… and {item.num_problems - len(item.problems):,} more", markup=False)
    if any(item.num_problems for item in done):
        raise typer.Exit(1)


def _print(item: ImportedFile) -> None:
    names = ", ".join(item.names[:8]) + (" …" if len(item.names) > 8 else "")
    console.output.print(
        Text(
            safe(
                f"{item.origin}: {'imported before, ' if item.known else ''}{plural(item.num_values, 'value')}, steps "
                f"{item.first_step}–{item.last_step}, {names}"
            )
        )
    )
    for note in item.notes:
        console.output.print(Text(safe(f"  {note}")), style="dim")
