"""HTML is made by `tag` alone: text becomes text, attributes stay attributes, and no `str` passes for HTML."""

import ast
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.support.shown_html import read_html
from ui.html.escape import EMPTY, LINE_BREAK, Html, joined, one_line, tag, text_html

UI = Path(__file__).parents[3] / "ui"
VISIBLE = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp", "Cn"]))


@given(st.text(), st.text())
def test_any_text_is_content_of_one_element_with_one_attribute(content: str, title: str) -> None:
    [outer, *boxes] = read_html(tag("p", content, title=title)).elements
    assert outer.name == "p" and set(outer.attributes) <= {"title"}
    assert {(box.name, box.attributes["class"]) for box in boxes} <= {("span", "ctl")}


@given(VISIBLE, VISIBLE)
def test_what_is_visible_is_shown_as_it_is(content: str, title: str) -> None:
    [outer] = read_html(tag("p", content, title=title)).elements
    assert (outer.text, outer.attributes.get("title", "")) == (content, title)


def test_what_is_added_to_html_is_escaped_with_its_invisible_characters() -> None:
    for html in (
        tag("b", "x") + "<\u202e",
        joined([tag("b", "x"), tag("i", "y")], "<\u202e"),
        "<\u202e" + tag("b", "x"),
    ):
        assert '&lt;<span class="ctl">U+202E</span>' in html and isinstance(html, Html)
    assert text_html(tag("b", "x")) == tag("b", "x") and tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
    assert joined([]) == EMPTY and not EMPTY


def test_attributes() -> None:
    link = tag("a", data_go=True, href='a"b', class_="", hidden=False, title=None, tabindex=0, aria_label="é")
    assert link == '<a data-go href="a&quot;b" tabindex="0" aria-label="é"></a>'
    assert tag("p", "a", LINE_BREAK, "b") == "<p>a<br>b</p>"


def test_the_command_line_needs_no_package_of_the_pages() -> None:
    code = "import sys, ui.terminal.trace, ui.terminal.search, ui.terminal.explanation; assert 'markupsafe' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_line() -> None:
    assert one_line(" a\n b\tc ", 10) == "a b c" and one_line("abcdef", 4) == "abc…"


def a_page() -> Html:
    """A plain text is no HTML: without the comment mypy refuses this line, and with it mypy wants it to be refused."""
    return "<b>text</b>"  # type: ignore[return-value]


def test_no_other_module_makes_html_of_a_text() -> None:
    makers = {"Html", "Markup", "format_map", "format", "unescape"}
    for path in sorted(UI.rglob("*.py")):
        if path.parent.name not in ("html", "pages") or path.stem == "escape":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                allowed = path.stem == "texts" and name == "format"
                assert name not in makers or allowed, f"{path.name}:{node.lineno} calls {name}"
    assert isinstance(a_page(), str)
