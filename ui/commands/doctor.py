"""`kiseki doctor`: is everything as it should be, and if not, what to do."""

import itertools
from pathlib import Path
from typing import Annotated

import typer

from ui.commands.arguments import JsonOption
from ui.terminal import console

__all__ = ["doctor_command"]

_STYLES = {"fine": "green", "note": "yellow", "wrong": "bold red"}


def doctor_command(
    run: Annotated[Path | None, typer.Argument(help="A run to look at as well.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Check this installation, and a run: what is wrong, and the way out. Exit code 1 where something is."""
    from rich.text import Text

    from indexer.answers.plain_data import plain_data
    from ui.doctor import check_installation, check_run

    checks = []
    for check in itertools.chain(check_installation(), () if run is None else check_run(run)):
        checks.append(check)
        if not as_json:
            line = Text.assemble((f"{check.verdict:6}", _STYLES[check.verdict]), f"{check.name}: {check.found}")
            console.output.print(line)
            if check.do:
                console.output.print(f"        → {check.do}", markup=False)
    if as_json:
        console.print_json(plain_data(checks))
    raise typer.Exit(any(check.verdict == "wrong" for check in checks))
