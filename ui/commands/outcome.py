"""How a question ends: the exit codes of `ui.cli` for what was found."""

from collections.abc import Sequence

import typer

from train_hooks.export_format.errors import IncompleteError, KisekiError

__all__ = ["NothingFound", "end", "nothing_found"]


class NothingFound(KisekiError):
    """A question that could be answered, with nothing. Exit code 1."""


def end(num_found: int, failures: Sequence[str]) -> None:
    """End a command whose answer is printed. Raises typer.Exit, with 3 where shards failed and 1 where nothing was found."""
    raise typer.Exit(3 if failures else 0 if num_found else 1)


def nothing_found(message: str, failures: Sequence[str]) -> KisekiError:
    """The error of a question without an answer: incomplete where shards failed, since they may hold one."""
    if failures:
        return IncompleteError(f"{message} (damaged and not searched: {'; '.join(failures)})")
    return NothingFound(message)
