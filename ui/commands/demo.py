"""`kiseki demo`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo_command"]


def demo_command(
    directory: Annotated[Path, typer.Argument(help="Where to put the demo run.")] = Path("demo-run"),
    steps: Annotated[int | None, typer.Option(help="Training steps; by default about a minute of them.", min=1)] = None,
) -> None:
    """Train a small model, and trace what it writes."""
    from ui.demo import run_demo

    run_demo(directory, steps)
