"""Where searches run: a few threads, a bounded queue before them, and a deadline that the client can rely on.

1. A search that did not finish by its deadline is answered with `deadline`. Its own thread looks at the clock as well
   (`indexer.answers.deadline`) and gives up soon after; its place is free only then, so that never more than
   `searches_at_once` run.
2. A search that is still waiting at its deadline is taken out of the queue.
3. A full queue is `busy`, at once.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from indexer.answers.deadline import deadline
from search_api.problems import Problem
from search_api.settings import Limits

__all__ = ["Workers"]

T = TypeVar("T")


class Workers:
    """The threads of one server."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(limits.searches_at_once, thread_name_prefix="kiseki-api")
        self._lock = threading.Lock()
        self.pending = 0

    async def run(self, function: Callable[[], T], deadline_s: float | None = None) -> T:
        """`function()` in a thread. Raises Problem `busy` and `deadline`, and whatever it raises."""
        limit_s = self._limits.deadline_s if deadline_s is None else deadline_s
        if self.pending >= self._limits.searches_at_once + self._limits.searches_waiting:
            raise Problem(
                "busy",
                f"{self._limits.searches_at_once} searches run and {self._limits.searches_waiting} wait already",
                retry_after_s=limit_s,
            )
        with self._lock:
            self.pending += 1
        future = self._pool.submit(_bounded, function, limit_s)
        future.add_done_callback(lambda _: self._finished())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), limit_s)
        except TimeoutError as error:
            raise Problem("deadline", f"expected an answer within {limit_s:g} s; ask for less") from error

    def _finished(self) -> None:
        with self._lock:
            self.pending -= 1

    def close(self) -> None:
        """Start no more searches."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _bounded(function: Callable[[], T], seconds: float) -> T:
    with deadline(seconds):
        return function()
