"""Where the command line writes: results to standard output, progress and errors to standard error.

`output` and `errors` are made when they are first used: a help page does not wait for rich.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    errors: Console
    output: Console

__all__ = ["errors", "output", "print_json", "progress"]


def __getattr__(name: str) -> Any:
    if name not in ("errors", "output"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rich.console import Console

    stream = sys.stderr if name == "errors" else sys.stdout
    width = None if name == "errors" or stream.isatty() else 200
    globals()[name] = Console(stderr=name == "errors", highlight=False, soft_wrap=True, width=width)
    return globals()[name]


def print_json(document: object) -> None:
    """A result for a program to read."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=1, default=str) + "\n")


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, a line for each tenth elsewhere. The callback takes (done, in all)."""
    if sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=__getattr__("errors"), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    shown = -1

    def line(done: int, total: int) -> None:
        nonlocal shown
        tenth = 10 * done // max(1, total)
        if tenth > shown:
            shown = tenth
            print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    yield line
