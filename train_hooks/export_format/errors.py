"""The error tree. A message says what was expected, what was found, and what to do.

KisekiError
├── InputError (ValueError)      what the caller gave cannot be used           exit code 2
│   ├── RunError                 not a run directory, or not one that we read
│   ├── RowError                 a sequence, segment or token that the run cannot hold
│   └── QueryError               a query that cannot be answered as asked
│       └── QuerySyntaxError     a query that does not parse; shows the place
├── DamageError                  bytes that do not match their hash            exit code 1
├── IncompleteError              what was asked for is not there yet           exit code 3
└── ExportStopped (RuntimeError) the exporter can no longer keep its promises; training must stop
    └── Mismatch             a forward got something else than the record would say
"""

import unicodedata

__all__ = [
    "DamageError",
    "ExportStopped",
    "IncompleteError",
    "InputError",
    "KisekiError",
    "Mismatch",
    "QueryError",
    "QuerySyntaxError",
    "RowError",
    "RunError",
]


class KisekiError(Exception):
    """Base of every error that kiseki raises on purpose."""

    exit_code = 1
    points_at_a_place = False
    """Whether the lines of the message belong under each other: a line of a query, and a caret under it."""


class InputError(KisekiError, ValueError):
    """What the caller gave cannot be used."""

    exit_code = 2


class RunError(InputError):
    """A directory that is no run, or a run of another version, or another run than was asked for."""


class RowError(InputError):
    """A sequence, segment or token that the run cannot hold."""


class QueryError(InputError):
    """A query that cannot be answered as it was asked."""


class QuerySyntaxError(QueryError):
    """A query that does not parse. `position`: the character where it fails; None where it is the query as a whole.

    The text of the error is `what` and the place, then the line of the query and a caret under that character.
    """

    points_at_a_place = True

    def __init__(self, what: str, query: str, position: int | None) -> None:
        self.what, self.query, self.position = what, query, position
        super().__init__(what if position is None else f"{what} (character {position + 1}):\n{_shown(query, position)}")


def _shown(query: str, position: int, width: int = 72) -> str:
    """The part of the query's line around `position`, and a caret under it. What does not print becomes U+FFFD."""
    start = query.rfind("\n", 0, position) + 1
    end = query.find("\n", position)
    end = len(query) if end < 0 else end
    start, end = max(start, position - width // 2), min(end, position + width // 2)
    line = "".join(character if character.isprintable() else "\ufffd" for character in query[start:end])
    wide = (unicodedata.east_asian_width(character) in "WF" for character in line[: position - start])
    padding = "".join("\u3000" if is_wide else " " for is_wide in wide)
    return f"  {line}\n  {padding}^"


class DamageError(KisekiError):
    """Bytes on disk that do not match their hash, or a file that is missing, cut or doubled."""


class IncompleteError(KisekiError):
    """What was asked for is not there yet."""

    exit_code = 3


class ExportStopped(KisekiError, RuntimeError):
    """The exporter can no longer keep its promises; the training must stop rather than go on unrecorded."""


class Mismatch(ExportStopped):
    """A forward of a step got something else than the record would say, so that the step cannot be recorded."""
