"""Links of README.md and docs/*.md lead somewhere, and docs/commands.md has every command and only options that there are."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.docs.markdown import ROOT

HELP = (ROOT / "docs" / "help.md").read_text(encoding="utf-8")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(path: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link} leads nowhere"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}: no such heading"


def leaf_commands() -> list[str]:
    """Every command that has no commands of its own."""
    sections = re.findall(r"^## (kiseki[^\n]*)\n\n```\n(.*?)\n```", HELP, re.MULTILINE | re.DOTALL)
    return [name for name, text in sections if "\nCommands:\n" not in text]


@pytest.mark.parametrize("command", leaf_commands())
def test_every_command_is_documented(command: str) -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    name = command.removesuffix(" show")
    row = re.search(rf"^\| `{re.escape(name)}(?= |`)[^|]*\|(.*)\|$", text.replace("\\|", "¦"), re.MULTILINE)
    assert row is not None, f"docs/commands.md has no row for {command}"
    help_text = HELP.partition(f"## {command}\n")[2].partition("\n## ")[0]
    for option in re.findall(r"--[a-z][a-z-]+", row[0]):
        assert option in help_text, f"docs/commands.md: {command} has no {option}"


def test_every_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in readme, f"README.md does not link docs/{page.name}"


def test_the_map_has_every_folder_and_no_others() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for package in ("kiseki", "train_hooks", "indexer", "search_api", "ui"):
        section = text.partition(f"### `{package}/`\n")[2].partition("\n### ")[0]
        assert section, f"docs/architecture.md has no section for {package}/"
        named = {name.rstrip("/") for name in re.findall(r"^\| `([^`]+/)` \|", section, re.MULTILINE)} - {package}
        folders = {path.parent.relative_to(ROOT / package).as_posix() for path in (ROOT / package).rglob("__init__.py")}
        assert named == folders - {"."}, f"docs/architecture.md, {package}/"


def test_modules_that_the_map_names_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    folders = ("kiseki", "train_hooks", "indexer", "search_api", "ui", "examples", "bench")
    files = [path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for name in re.findall(r"[\w/]+\.py\b", text):
        assert any(file == name or file.endswith(f"/{name}") for file in files), f"docs/architecture.md: no {name}"
