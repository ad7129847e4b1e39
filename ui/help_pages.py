"""The `--help` of every command as one Markdown page: `python -m ui.help_pages docs/help.md` writes it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command

from ui.cli import app

__all__ = ["help_page"]

WIDTH = 100
HEAD = """# Help of every command

Made by `python -m ui.help_pages docs/help.md` from the commands themselves;
[commands.md](commands.md) says more of what they do.
"""


def help_page() -> str:
    """Markdown, a section for each command and group, in the order of `kiseki --help`."""
    sections = [
        f"## {' '.join(names)}\n\n```\n{text}\n```\n" for names, text in _helps(get_command(app), ["kiseki"], None)
    ]
    return "\n".join([HEAD, *sections])


def _helps(command: Any, names: list[str], parent: Any) -> Iterator[tuple[list[str], str]]:
    context = command.context_class(
        command, info_name=names[-1], parent=parent, terminal_width=WIDTH, max_content_width=WIDTH
    )
    yield names, "\n".join(line.rstrip() for line in command.get_help(context).strip().splitlines())
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        child = command.resolve_command(context, [name])[1]
        if not child.hidden:
            yield from _helps(child, [*names, name], context)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(help_page(), encoding="utf-8")
