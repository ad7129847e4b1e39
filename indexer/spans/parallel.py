"""One search for spans by as many threads as it is worth.

Rules:

1. A search begins in the thread that asks. It stops when it finds itself waiting for the disk, for READERS threads to go on;
   or when it has much to do, in many shards or of a long query, for as many threads as there are cores.
2. The rest of the query is cut in stretches of starts. What is maximal in the query is maximal in its stretch, and what is so
   in the stretch alone lies in a span that begins earlier. All shards stay together: a copy in one spares all others.
3. Every thread, the asking one among them, claims the next stretch until none is left. A helper that comes late claims
   fewer; for one that does not come nobody waits.
4. A core's helper is woken on another core than that of the thread it helps. Linux often puts it on the same one, where it
   waits for what it was to help.
"""

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from indexer.spans.kernels.group import NEVER, TWICE, Group, gathered, maximal_spans
from indexer.spans.kernels.packing import SEARCHES

__all__ = ["Search", "search_spans"]

I64 = NDArray[np.int64]
PATIENCE = 4
"""Look-ups that may wait for the disk before others help."""
READERS = 16
"""Threads at most that read side by side."""
CORES = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
BUDGET, AHEAD = 256, 4_000
"""Look-ups, each in one shard, after which as many threads as there are cores go on, if AHEAD more are to be expected."""
STRETCH, STRETCHES = 4, 64
"""A stretch is at least so many times the minimum length, or TWICE; stretches at most."""
APART = 16
"""Numbers from one thread's counters to the next one's: two threads must not write to one line of the cache."""
current_core: Callable[[], int] | None = getattr(ctypes.CDLL(None), "sched_getcpu", None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """A query in the shards of a group, and what its threads share.

    found  counts, spans and ranks, as `group_kernels.Shared` has them
    work   i64 [READERS, APART]  in the first columns what each thread did
    """

    group: Group
    tokens: NDArray[np.unsignedinteger]
    min_length: int
    separator: int
    found: tuple[I64, I64, I64]
    work: I64

    def run(self, stretches: tuple[I64, I64], thread: int, patience: int, budget: int = NEVER) -> tuple[int, int]:
        """Search stretches until none is left; or stop, and return the rest of the last one, which is empty otherwise."""
        return maximal_spans(
            self.group, self.tokens, (*stretches, *self.found), self.min_length, self.separator, patience, (budget, AHEAD),
            self.work[thread],
        )  # fmt: skip


def search_spans(
    group: Group, tokens: NDArray[np.unsignedinteger], min_length: int, separator: int
) -> tuple[I64, I64, I64]:
    """Maximal spans i64 [k, 2], their ranks and counts i64 [k, shards, 3], and the work i64 [3], see `group_kernels`."""
    num = len(tokens)
    search = Search(
        group=group,
        tokens=tokens,
        min_length=min_length,
        separator=separator,
        found=(np.zeros(num + 1, np.int64), np.empty((num, 2), np.int64), np.empty((num, len(group[0]), 3), np.int64)),
        work=np.zeros((READERS, APART), np.int64),
    )
    whole = np.array((0, num)), np.zeros(2, np.int64)
    done, end = search.run(whole, 0, PATIENCE, BUDGET if CORES > 1 else NEVER)
    if done < end:
        spans, ranks = _shared(search, done, end)
    else:
        counts, spans, ranks = search.found
        spans, ranks = spans[: counts[0]].copy(), ranks[: counts[0]].copy()
    return spans, ranks, search.work[:, :3].sum(axis=0)


def _shared(search: Search, done: int, end: int) -> tuple[I64, I64]:
    """Search the rest together with other threads; the spans and ranks of all."""
    num = max(1, min(STRETCHES, (end - done) // (STRETCH * min(search.min_length, TWICE))))
    stretches, others = _stretches(done, end, num), list[Future[object]]()
    job = functools.partial(search.run, stretches, patience=NEVER)
    is_busy = CORES > 1 and search.work[0, SEARCHES] >= BUDGET
    if is_busy:
        others = _helpers().help(job, min(CORES, num) - 1)
        done, end = search.run(stretches, 0, PATIENCE)
    if done < end:
        others += [_readers().submit(job, thread) for thread in range(1 + len(others), min(READERS, num))]
        if is_busy:
            search.run(_stretches(done, end, 1), 0, NEVER)
        job(0)
    is_done, spans, ranks = gathered((*stretches, *search.found))
    if not is_done:
        for other in others:
            if not other.cancel():
                other.result()
        _, spans, ranks = gathered((*stretches, *search.found))
    return spans, ranks


def _stretches(first: int, end: int, num: int) -> tuple[I64, I64]:
    """Edges of `num` stretches of starts, and how many are claimed and done."""
    return np.array([first + (end - first) * number // num for number in range(num + 1)]), np.zeros(2, np.int64)


class Helpers:
    """Threads for other cores, each for one search at a time."""

    def __init__(self, num: int) -> None:
        self._idle, self._ids = threading.Semaphore(num), list[int]()
        self._pool = ThreadPoolExecutor(num, "kiseki-helper", lambda: self._ids.append(threading.get_native_id()))

    def help(self, job: Callable[[int], object], most: int) -> list[Future[object]]:
        """Let those that are idle, `most` at most, do job(1), job(2) … on other cores than this one."""
        futures: list[Future[object]] = []
        while len(futures) < most and self._idle.acquire(blocking=False):
            if not futures:
                self._keep_off()
            futures.append(self._pool.submit(job, 1 + len(futures)))
            futures[-1].add_done_callback(lambda _: self._idle.release())
        return futures

    def _keep_off(self) -> None:
        if current_core is not None and hasattr(os, "sched_setaffinity"):
            others = os.sched_getaffinity(0) - {current_core()}
            for thread in self._ids if others else []:
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(thread, others)


@functools.cache
def _helpers() -> Helpers:
    return Helpers(CORES - 1)


@functools.cache
def _readers() -> ThreadPoolExecutor:
    """Threads that are kept: to start some takes as long as a tenth of a search that waits for the disk."""
    return ThreadPoolExecutor(READERS, "kiseki-reader")


def _forget_threads() -> None:
    """A forked child has none of its parent's threads."""
    _helpers.cache_clear()
    _readers.cache_clear()


os.register_at_fork(after_in_child=_forget_threads)
