"""Text as HTML that shows it and runs nothing. Every piece of HTML of the pages comes from here, and has the type `Html`.

1. `tag` escapes each `str` that it is given, as content or as an attribute, and takes `Html` as it is. Where HTML is
   expected a plain `str` is a type error, so no text becomes HTML by accident.
2. No other module makes `Html` of a `str` without escaping it. A test holds that.
3. Control characters, bidi controls, lone surrogates and line separators would hide text or turn it around. They are shown
   as U+202E and the like: in a small box in content, plain in an attribute. White space stays as it is.
"""

import html
import re
from collections.abc import Callable, Iterable
from typing import Any, Self, TypeVar

from markupsafe import Markup

__all__ = ["EMPTY", "LINE_BREAK", "Html", "attribute", "joined", "one_line", "tag", "text_html"]

SomeHtml = TypeVar("SomeHtml", bound="Html")

# C0 without tab and newline, DEL and C1, Arabic letter mark, bidi marks, embeddings, isolates, line separators, BOM, tags.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


class Html(Markup):
    """HTML that is safe to show. A `str` that is added or joined to it is escaped as `text_html` does it."""

    __slots__ = ()

    @classmethod
    def escape(cls, s: Any, /) -> Self:
        """The text as content; `Html` as it is."""
        return _trusted(cls, s if isinstance(s, Html) else _escaped(str(s), _box))


def text_html(text: str) -> Html:
    """The text as HTML content, invisible characters in boxes. `Html` is returned as it is."""
    return text if isinstance(text, Html) else _trusted(Html, _escaped(text, _box))


def attribute(text: str) -> Html:
    """The text for between the quotation marks of an attribute, invisible characters as U+….."""
    return _trusted(Html, _escaped(text, _code_point))


def tag(name: str, *content: str, **attributes: str | float | bool | None) -> Html:
    """An element with its content, both ends of it written.

    content: texts, which are escaped, and `Html`. attributes: `class_` is `class`, and `data_go` is `data-go`; True writes
    the name alone; False, None and "" leave the attribute out. Names come from the code, never from data.
    """
    written = "".join([_written(key, value) for key, value in attributes.items()])
    inner = "".join([text if isinstance(text, Html) else _escaped(text, _box) for text in content])
    return _trusted(Html, f"<{name}{written}>{inner}</{name}>")


def joined(parts: Iterable[Html], between: str = "") -> Html:
    """Pieces of HTML one after the other, with a text between them."""
    return text_html(between).join(parts)


def one_line(text: str, width: int) -> str:
    """The text, not yet escaped, with its white space run together, at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _trusted(kind: type[SomeHtml], text: str) -> SomeHtml:
    """A text that is escaped as HTML; a page has many thousands, and this is faster than `Html(text)`."""
    return str.__new__(kind, text)


def _escaped(text: str, named: Callable[[re.Match[str]], str]) -> str:
    """Invisible characters are named only after what HTML gives a meaning is escaped, for a name may be HTML itself."""
    escaped = html.escape(text)
    return escaped if escaped.isprintable() else _INVISIBLE.sub(named, escaped)


def _written(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False or value == "":
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{_escaped(str(value), _code_point)}"'


def _code_point(found: re.Match[str]) -> str:
    return f"U+{ord(found[0]):04X}"


def _box(found: re.Match[str]) -> str:
    return "" if found[0] == "\r" else f'<span class="ctl">{_code_point(found)}</span>'


EMPTY = Html()
LINE_BREAK = Html("<br>")
