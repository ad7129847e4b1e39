"""Cursors: where a page ended, on which generation, of which question. Opaque to clients and signed by this server.

A cursor holds the run, the generation, a fingerprint of the question and of what the key may see, and the place. Another
question, another key or a changed byte is refused; a generation that is gone is a problem of its own (`runs`). The signing
secret lives as long as the server, as the generations that it keeps open do.
"""

import base64
import binascii
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass

from search_api.problems import Problem

__all__ = ["Cursor", "CursorSigner"]

_TAG_BYTES = 16
_MAX_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """place: what the endpoint needs to go on, plain JSON."""

    run_id: str
    generation: int
    question: str
    place: tuple[int | str, ...]


class CursorSigner:
    """Makes and reads cursors."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    @staticmethod
    def fingerprint(*question: object) -> str:
        """A short name of a question: equal for equal parts."""
        return hashlib.sha256(repr(question).encode("utf-8", "backslashreplace")).hexdigest()[:24]

    def sign(self, cursor: Cursor) -> str:
        """The text that the client gets."""
        parts = [cursor.run_id, cursor.generation, cursor.question, list(cursor.place)]
        body = json.dumps(parts, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(self._tag(body) + body).decode("ascii")

    def read(self, text: str, question: str) -> Cursor:
        """The cursor in `text`, if it is ours and continues `question`. Raises Problem `cursor`."""
        try:
            if len(text) > _MAX_CHARACTERS:
                raise ValueError("too long")
            data = base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error) as error:
            raise Problem("cursor", "expected a cursor as this server gave it") from error
        tag, body = data[:_TAG_BYTES], data[_TAG_BYTES:]
        if not hmac.compare_digest(tag, self._tag(body)):
            raise Problem("cursor", "expected a cursor as this server gave it; it forgets them when it starts anew")
        run_id, generation, of_question, place = json.loads(body)
        if of_question != question:
            raise Problem("cursor", "the cursor continues another question; send the very same body and key with it")
        return Cursor(run_id=run_id, generation=generation, question=question, place=tuple(place))

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self._secret, body, "sha256")[:_TAG_BYTES]
