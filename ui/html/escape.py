"""Strangers' text as HTML that shows it and runs nothing.

1. Every character that HTML gives a meaning is escaped; no text becomes a tag, an attribute or a link's scheme.
2. Controls, bidi controls, lone surrogates and line separators, which would hide or turn the text around, are shown as
   U+202E and the like in a small box. White space stays as it is.
"""

import html
import re

__all__ = ["attribute", "one_line", "text_html"]

# C0 without tab and newline, DEL and C1, Arabic letter mark, bidi marks, embeddings, isolates, line separators, BOM, tags.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def text_html(text: str) -> str:
    """The text as HTML content."""
    return _INVISIBLE.sub(_box, html.escape(text))


def attribute(text: str) -> str:
    """The text for between the quotation marks of an attribute, invisible characters as U+….."""
    return html.escape(_INVISIBLE.sub(lambda found: f"U+{ord(found[0]):04X}", text))


def one_line(text: str, width: int) -> str:
    """The text, not yet escaped, with its white space run together, at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _box(found: re.Match[str]) -> str:
    if found[0] == "\r":
        return ""
    return f'<span class="ctl">U+{ord(found[0]):04X}</span>'
