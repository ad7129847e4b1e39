"""Cursors: where a page ended, on which generation, of which question. Opaque to clients and signed by this server.

It is one of `indexer.answers.cursor` with a signature behind it. It holds the run, the generation, a fingerprint of the
question and of what the key may see, and the place. Another question, another key or a changed byte is refused. A
generation that is gone is a problem of its own (`runs`). The signing secret lives as long as the server, as the generations
that it keeps open do.
"""

import hmac
import secrets
from dataclasses import dataclass
from typing import cast

from indexer.answers.cursor import CursorError, Values, decode_cursor, encode_cursor, fingerprint
from search_api.problems import Problem

__all__ = ["Cursor", "CursorSigner"]

_NAME, _VERSION = "page", 1
_TAG_DIGITS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """place: what the endpoint needs to go on, plain JSON."""

    run_id: str
    generation: int
    question: str
    place: Values


class CursorSigner:
    """Makes and reads cursors."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    @staticmethod
    def fingerprint(*question: object) -> str:
        """A short name of a question: equal for equal parts."""
        return fingerprint(*question)

    def sign(self, cursor: Cursor) -> str:
        """The text that the client gets."""
        values = (cursor.run_id, cursor.generation, cursor.question, *cursor.place)
        body = encode_cursor(_NAME, _VERSION, values)
        return f"{body}.{self._tag(body)}"

    def read(self, text: str, question: str) -> Cursor:
        """The cursor in `text`, if it is ours and continues `question`. Raises Problem `cursor`."""
        body, _, tag = text.rpartition(".")
        if not hmac.compare_digest(tag.encode("utf-8", "backslashreplace"), self._tag(body).encode()):
            raise Problem("cursor", "expected a cursor as this server gave it; it forgets them when it starts anew")
        try:
            values = decode_cursor(body, _NAME, _VERSION)
        except CursorError as error:
            raise Problem("cursor", str(error)) from error
        run_id, generation, of_question = cast("tuple[str, int, str]", values[:3])
        if of_question != question:
            raise Problem("cursor", "the cursor continues another question; send the very same body and key with it")
        return Cursor(run_id=run_id, generation=generation, question=question, place=values[3:])

    def _tag(self, body: str) -> str:
        data = body.encode("utf-8", "backslashreplace")
        return hmac.digest(self._secret, data, "sha256").hex()[:_TAG_DIGITS]
