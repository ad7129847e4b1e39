"""Cursors: where a page ended, as a text that asks for the next page. The only form that cursors have.

A cursor is `NAME-vVERSION.VALUES`: which list it goes on with, the version of what follows, and whole numbers and texts as
JSON in URL-safe Base64. Who gives one out says what the values mean, and that it fits the question that it comes back with.
"""

import base64
import hashlib
import json
from collections.abc import Sequence

from train_hooks.export_format.errors import QueryError

__all__ = ["CursorError", "Values", "decode_cursor", "encode_cursor", "fingerprint"]

Values = tuple[int | str, ...]
MAX_CHARACTERS, MAX_NUMBER = 8000, (1 << 63) - 1


class CursorError(QueryError):
    """A text that is no cursor, or one of something else: another list, version, question or generation."""


def encode_cursor(name: str, version: int, values: Values) -> str:
    """The text for a client."""
    data = json.dumps(values, separators=(",", ":")).encode("ascii")
    return f"{name}-v{version}.{base64.urlsafe_b64encode(data).decode('ascii').rstrip('=')}"


def decode_cursor(text: str, name: str, version: int, shapes: Sequence[Sequence[type]] = ()) -> Values:
    """The values of a cursor. shapes: which types they may have, any where none is given. Numbers are 0 … 2⁶³ - 1.

    Raises CursorError for a text that is no cursor of this name and version.
    """
    head, _, encoded = text.partition(".")
    if head != f"{name}-v{version}" or len(text) > MAX_CHARACTERS:
        raise _unknown(text, name)
    try:
        padded = encoded.encode("ascii") + b"=" * (-len(encoded) % 4)
        values = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, RecursionError) as error:
        raise _unknown(text, name) from error
    if not isinstance(values, list) or not all(_is_value(value) for value in values):
        raise _unknown(text, name)
    if shapes and [type(value) for value in values] not in [list(shape) for shape in shapes]:
        raise _unknown(text, name)
    return tuple(values)


def fingerprint(*question: object) -> str:
    """A short name of a question: equal for equal parts."""
    return hashlib.sha256(repr(question).encode("utf-8", "backslashreplace")).hexdigest()[:24]


def _is_value(value: object) -> bool:
    return isinstance(value, str) or (type(value) is int and 0 <= value <= MAX_NUMBER)


def _unknown(text: str, name: str) -> CursorError:
    return CursorError(
        f"cursor: expected one that an answer of this version gave ({name}-v…), found {text[:60]!r}; start again without one"
    )
