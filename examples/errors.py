"""How a command of the examples ends when it cannot do what it was asked: with one line, and no traceback."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from train_hooks.export_format.errors import InputError, KisekiError

__all__ = ["InputError", "one_line_errors"]

_HEAD_START_S = 2.0


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the process with one line on an error that somebody raised on purpose: exit code 2 for an InputError."""
    try:
        yield
    except KisekiError as error:
        # Most faults meet every rank alike, and rank 0 is to name them once: the launcher ends the other ranks while
        # they wait. A fault that another rank alone has is told a moment later.
        if os.environ.get("RANK", "0") != "0":
            time.sleep(_HEAD_START_S)
        print(f"error: {error}", file=sys.stderr, flush=True)
        # Not sys.exit: the other ranks may be waiting in a collective, which an orderly shutdown would wait for.
        os._exit(error.exit_code)
