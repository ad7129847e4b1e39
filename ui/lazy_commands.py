"""Commands that are imported when they are run: `kiseki --help`, a wrong command and completion wait for none of them."""

import importlib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

__all__ = ["LazyCommand", "LazyGroup"]


class LazyCommand(TyperCommand):
    """A name in a list. `where`: module:attribute of a function or a group; `help`: the first sentence of theirs."""

    def __init__(self, name: str, where: str, short_help: str) -> None:
        super().__init__(name=name, help=short_help, short_help=short_help, callback=None)
        self._where = where

    def load(self) -> Any:
        """The command itself."""
        module, _, attribute = self._where.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        around = typer.Typer(add_completion=False, rich_markup_mode=None)
        around.callback()(_nothing)
        if isinstance(found, typer.Typer):
            around.add_typer(found, name=self.name)
        else:
            around.command(self.name)(found)
        return get_command(around).commands[self.name]  # type: ignore[attr-defined]  # a group, since it has a callback


class LazyGroup(TyperGroup):
    """Its commands may be LazyCommands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """As TyperGroup has it, with the command itself."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command.load() if isinstance(command, LazyCommand) else command, rest


def _nothing() -> None:
    pass
