"""How long a question may take: the loops that can be long look at the clock, and give up when it is over.

    with deadline(2.0):
        trace(reader, text)  # raises DeadlineError soon after two seconds

Kernels are not interrupted; each of them takes milliseconds. The deadline is of this thread (or task) alone.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from train_hooks.export_format.errors import QueryError

__all__ = ["DeadlineError", "check_deadline", "deadline"]

_end: ContextVar[tuple[float, float]] = ContextVar("kiseki-deadline", default=(math.inf, math.inf))


class DeadlineError(QueryError):
    """A question that took too long."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """What is asked inside has so many seconds."""
    token = _end.set((time.monotonic() + seconds, seconds))
    try:
        yield
    finally:
        _end.reset(token)


def check_deadline() -> None:
    """Raises DeadlineError where the time is over."""
    end, seconds = _end.get()
    if time.monotonic() > end:
        raise DeadlineError(
            f"expected an answer within {seconds:g} s; ask for less: a shorter text, fewer hits or steps"
        )
