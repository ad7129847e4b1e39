"""Every sentence of the pages has its Japanese, with the same names in braces; and no Japanese is left over."""

import ast
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from ui.html.texts import JAPANESE, say_in

UI = Path(__file__).parents[3] / "ui"
MODULES = [path for folder in ("html", "pages") for path in sorted((UI / folder).glob("*.py"))]
TREES = {path: ast.parse(path.read_text("utf-8")) for path in MODULES}


def sentences(path: Path) -> Iterator[str]:
    """What a module says: constants given to `say`, and the values of the tables that it says from."""
    for node in ast.walk(TREES[path]):
        if not (isinstance(node, ast.Call) and name_of(node.func) == "say" and node.args):
            continue
        match node.args[0]:
            case ast.Constant(value=str() as text):
                yield text
            case ast.Subscript(value=ast.Name(id=table)):
                yield from values_of(table)


def name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def values_of(table: str) -> list[str]:
    """The texts of a table of that name, in whichever module it is."""
    found = [
        value
        for tree in TREES.values()
        for node in tree.body
        for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
        if getattr(target, "id", None) == table and isinstance(value := getattr(node, "value", None), ast.Dict)
    ]
    assert found, f"no table {table}"
    return [text for value in found for text in ast.literal_eval(value).values() if isinstance(text, str)]


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_sentence_has_its_japanese(path: Path) -> None:
    missing = [text for text in sentences(path) if text not in JAPANESE]
    assert missing == []


def test_japanese_says_the_same_numbers_and_nothing_is_left_over() -> None:
    constants = {node.value for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert len(JAPANESE) > 100 and set(JAPANESE) <= constants
    for english, japanese in JAPANESE.items():
        assert fields(english) == fields(japanese), english
        assert any(ord(character) > 0x2FFF for character in japanese) or english == "SQL", english


def test_values_of_strangers_are_no_format() -> None:
    assert say_in("ja")("step {n}", n="{0.__class__} {tokens}") == JAPANESE["step {n}"].format(
        n="{0.__class__} {tokens}"
    )
