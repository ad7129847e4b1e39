"""The code blocks of README.md and docs/*.md, with what an HTML comment right above a block says about it.

<!-- not run: WHY -->             it cannot run here; Python is still compiled, and its names are checked
<!-- exit code N: WHY -->         its last command ends with this code
<!-- needs the block above -->    both run, one after the other, in the same directory
<!-- output of the block above --> each line, up to an ellipsis, is in what that block printed
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["LANGUAGES", "PAGES", "ROOT", "Block", "blocks", "every_block"]

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "help.md"),
)
"""docs/help.md is made by a program, and tests/ui/test_help_page.py compares it."""
LANGUAGES = ("bash", "python", "yaml", "ebnf", "text")
_FENCE = re.compile(r"^( *)```(.*)$")
_COMMENT = re.compile(r"^ *<!-- (.*) -->$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A fenced block. line: of its first fence, from 1. marks: the comments right above it."""

    page: str
    line: int
    language: str
    text: str
    marks: tuple[str, ...] = ()
    before: "Block | None" = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Where it is, for the test's name."""
        return f"{self.page}:{self.line}"

    @property
    def not_run(self) -> str | None:
        """Why it cannot run here; None where it can."""
        return self._mark("not run: ")

    @property
    def exit_code(self) -> int:
        """That of its last command."""
        mark = self._mark("exit code ")
        return int(mark.partition(":")[0]) if mark else 0

    @property
    def needs_block_above(self) -> bool:
        return "needs the block above" in self.marks

    @property
    def is_output(self) -> bool:
        return "output of the block above" in self.marks

    def _mark(self, begin: str) -> str | None:
        return next((mark.removeprefix(begin) for mark in self.marks if mark.startswith(begin)), None)


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in order. Raises AssertionError where a fence is not closed."""
    found: list[Block] = []
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        fence = _FENCE.match(lines[number])
        if fence is None:
            number += 1
            continue
        end = next((n for n in range(number + 1, len(lines)) if lines[n] == f"{fence[1]}```"), None)
        assert end is not None, f"{page.name}:{number + 1}: the block has no end"
        text = "\n".join(line.removeprefix(fence[1]) for line in lines[number + 1 : end]) + "\n"
        found.append(
            Block(
                page=page.name,
                line=number + 1,
                language=fence[2].strip(),
                text=text,
                marks=_marks_above(lines, number),
                before=found[-1] if found else None,
            )
        )
        number = end + 1
    return found


def _marks_above(lines: list[str], number: int) -> tuple[str, ...]:
    marks: list[str] = []
    while number and (comment := _COMMENT.match(lines[number - 1])):
        marks.insert(0, comment[1])
        number -= 1
    return tuple(marks)


def every_block() -> list[Block]:
    """Those of all pages."""
    return [block for page in PAGES for block in blocks(page)]
