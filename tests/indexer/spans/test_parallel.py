"""One search by several threads: who helps, where, and what is waited for."""

import functools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest

from indexer.spans import parallel as sharing
from indexer.spans.group import SpanGroup, span_group, spans_of_group
from indexer.spans.kernels.group import NEVER
from tests.indexer.spans import shards
from tests.indexer.spans.test_group import plain

RNG = np.random.default_rng
Job = Callable[[int], object]


@pytest.fixture(name="many", scope="module")
def many_shards() -> tuple[SpanGroup, list[int], list[int]]:
    """Forty shards; a new text with a copy in it, which gives [300, 500, 1]; and a copy."""
    rng = RNG(7)
    rows = [rng.integers(0, 500, 400).tolist() for _ in range(40)]
    new = [*rng.integers(0, 500, 300).tolist(), *rows[3][:200], *rng.integers(0, 500, 300).tolist()]
    return span_group([shards.build([row]) for row in rows]), new, rows[3][100:]


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "CORES", 4)
    monkeypatch.setattr(sharing, "PATIENCE", 10**9)


def alone(group: SpanGroup, query: list[int]) -> list[list[int]]:
    with patch.object(sharing, "CORES", 1):
        return plain(spans_of_group(group, query, 8))


def test_cores_share_what_is_much(
    many: tuple[SpanGroup, list[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new text in many shards is shared; a copy, and few shards, are not."""
    group, new, copy = many
    helpers, threads = sharing.Helpers(3), set[int]()

    class Watched:
        def help(self, job: Job, most: int) -> list[Future[object]]:
            assert most == 3

            def watched(thread: int) -> object:
                threads.add(thread)
                return job(thread)

            return helpers.help(watched, most)

    monkeypatch.setattr(sharing, "_helpers", Watched)
    found = spans_of_group(group, new, 8)
    assert plain(found) == alone(group, new) and [300, 500, 1] in plain(found)
    time.sleep(0.1)
    assert threads == {1, 2, 3}
    threads.clear()
    assert plain(spans_of_group(group, copy, 8)) == [[0, 300, 1]]
    assert plain(spans_of_group(span_group(group.shards[:1]), new, 8)) == []
    assert not threads


def test_a_helper_that_never_comes_is_not_waited_for(
    many: tuple[SpanGroup, list[int], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Nobody:
        def help(self, job: Job, most: int) -> list[Future[object]]:
            del job
            return [Future() for _ in range(most)]

    monkeypatch.setattr(sharing, "_helpers", Nobody)
    assert plain(spans_of_group(many[0], many[1], 8)) == alone(many[0], many[1])


@pytest.mark.parametrize("fails", [False, True])
def test_a_helper_that_has_begun_is_waited_for(
    many: tuple[SpanGroup, list[int], list[int]], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """It claims the first stretch, which has no other chance to be searched, and takes long; or does not come to its end."""

    class Slow:
        def help(self, job: Job, most: int) -> list[Future[object]]:
            del most
            assert isinstance(job, functools.partial)
            (edges, state), search = job.args[0], getattr(job.func, "__self__")  # noqa: B009
            state[0] += 1

            def work() -> None:
                time.sleep(0.2)
                if fails:
                    raise MemoryError("no room")
                search.run((edges[:2].copy(), np.zeros(2, np.int64)), 1, NEVER)
                state[1] += 1

            return [pool.submit(work)]

    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(sharing, "_helpers", Slow)
        if fails:
            with pytest.raises(MemoryError, match="no room"):
                spans_of_group(many[0], many[1], 8)
        else:
            assert plain(spans_of_group(many[0], many[1], 8)) == alone(many[0], many[1])


def test_helpers_do_one_thing_at_a_time() -> None:
    helpers, go = sharing.Helpers(2), threading.Event()
    busy = helpers.help(lambda _: go.wait(10), 1)
    more = helpers.help(lambda _: go.wait(10), 5)
    assert (len(busy), len(more), helpers.help(print, 5)) == (1, 1, [])
    go.set()
    assert [each.result(10) for each in busy + more] == [True, True]
    deadline = time.monotonic() + 10
    while not (again := helpers.help(lambda thread: thread, 2)):
        assert time.monotonic() < deadline
    assert again[0].result(10) == 1


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="there is one core, or no way to ask",
)
def test_a_helper_keeps_off_the_core_of_the_asking_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    helpers, cores = sharing.Helpers(1), os.sched_getaffinity(0)
    for core in sorted(cores)[:2]:
        monkeypatch.setattr(sharing, "current_core", lambda core=core: core)
        found: list[set[int]] = []
        while len(found) < 2:  # the first one begins where it likes
            for future in helpers.help(lambda _: found.append(os.sched_getaffinity(0)), 1):  # noqa: B023
                future.result(10)
        assert found[-1] == cores - {core}
    assert os.sched_getaffinity(0) == cores


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_searches_with_threads_of_its_own(many: tuple[SpanGroup, list[int], list[int]]) -> None:
    arrays = shards.build([RNG(3).integers(0, 4, 400).tolist()])
    query, expected = RNG(3).integers(0, 4, 400).tolist(), alone(many[0], many[1])

    def search() -> None:
        with patch.multiple(sharing, PATIENCE=0, STRETCH=1):
            assert plain(spans_of_group(span_group([arrays]), query, 8)) == [[0, 400, 1]]
        assert plain(spans_of_group(many[0], many[1], 8)) == expected

    list(
        sharing._readers().map(time.sleep, [0.01] * sharing.READERS)
    )  # all threads are there, and idle: a child has none
    search()
    child = multiprocessing.get_context("fork").Process(target=search)
    child.start()
    child.join(30)
    hangs = child.exitcode is None
    child.kill()
    assert (hangs, child.exitcode) == (False, 0)
