"""The error tree. A message says what was expected, what was found, and what to do.

KisekiError
├── InputError (ValueError)      what the caller gave cannot be used           exit code 2
│   ├── RunError                 not a run directory, or not one that we read
│   ├── RowError                 a sequence, segment or token that the run cannot hold
│   └── QueryError               a query that cannot be answered as asked
├── DamageError                  bytes that do not match their hash            exit code 1
├── IncompleteError              what was asked for is not there yet           exit code 3
└── ExportStopped (RuntimeError) the exporter can no longer keep its promises; training must stop
"""

__all__ = [
    "DamageError",
    "ExportStopped",
    "IncompleteError",
    "InputError",
    "KisekiError",
    "QueryError",
    "RowError",
    "RunError",
]


class KisekiError(Exception):
    """Base of every error that kiseki raises on purpose."""

    exit_code = 1


class InputError(KisekiError, ValueError):
    """What the caller gave cannot be used."""

    exit_code = 2


class RunError(InputError):
    """A directory that is no run, or a run of another version, or another run than was asked for."""


class RowError(InputError):
    """A sequence, segment or token that the run cannot hold."""


class QueryError(InputError):
    """A query that cannot be answered as it was asked."""


class DamageError(KisekiError):
    """Bytes on disk that do not match their hash, or a file that is missing, cut or doubled."""


class IncompleteError(KisekiError):
    """What was asked for is not there yet."""

    exit_code = 3


class ExportStopped(KisekiError, RuntimeError):
    """The exporter can no longer keep its promises; the training must stop rather than go on unrecorded."""
