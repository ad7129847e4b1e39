"""Deadlines hold against searches that do not end; a full queue is said at once; the places come back."""

import asyncio
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from indexer.trace.counts import count_of_ngram
from search_api import Limits, Settings
from search_api.problems import Problem
from search_api.workers import Workers
from tests.conftest import TextRun
from tests.support.coroutines import run_coroutine
from tests.support.live_server import live_server

pytestmark = pytest.mark.alone

LIMITS = Limits(searches_at_once=1, searches_waiting=1, deadline_s=0.3)


def kind_of(error: BaseException) -> str:
    assert isinstance(error, Problem)
    return error.kind


def test_deadline_queue_and_places() -> None:
    release, started = threading.Event(), []

    def slow() -> int:
        started.append(1)
        release.wait(10)
        return 1

    async def main() -> None:
        workers = Workers(LIMITS)
        began = time.perf_counter()
        found = await asyncio.gather(*(workers.run(slow) for _ in range(4)), return_exceptions=True)
        assert 0.25 < time.perf_counter() - began < 2
        kinds = sorted(kind_of(error) for error in found if isinstance(error, BaseException))
        assert kinds == ["busy", "busy", "deadline", "deadline"]
        assert len(started) == 1, "the one that waited was taken out of the queue"
        assert workers.pending == 1, "the one that runs keeps its place"
        with pytest.raises(Problem, match="within"):
            await workers.run(lambda: 2)
        release.set()
        assert await workers.run(lambda: 3, deadline_s=5) == 3
        await asyncio.sleep(0.05)
        assert workers.pending == 0
        with pytest.raises(ZeroDivisionError):
            await workers.run(lambda: 1 // 0)
        workers.close()

    run_coroutine(main())


@pytest.fixture
def slow_counts(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Counts wait until they are released; everything else of them is real."""
    release = threading.Event()

    def slow(*arguments: object) -> object:
        release.wait(20)
        return count_of_ngram(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("search_api.routes.ngrams.count_of_ngram", slow)
    yield release
    release.set()


def test_clients_are_answered_in_time(text_run: TextRun, slow_counts: threading.Event) -> None:
    with live_server(Settings(run_dirs=(text_run.run_dir,), limits=LIMITS)) as url:
        answers: list[tuple[int, str, float, str]] = []

        def ask() -> None:
            began = time.perf_counter()
            response = httpx.post(f"{url}/v1/count", json={"text": "a"}, timeout=20)
            took_s, retry = time.perf_counter() - began, response.headers.get("retry-after", "")
            answers.append((response.status_code, response.json()["type"].rpartition(":")[2], took_s, retry))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        assert httpx.get(f"{url}/healthz", timeout=5).status_code == 200
        for thread in threads:
            thread.join()
        assert {(status, kind) for status, kind, _, _ in answers} == {(504, "deadline"), (503, "busy")}
        assert max(took_s for _, _, took_s, _ in answers) < LIMITS.deadline_s + 0.5
        assert all(int(retry) >= 1 for status, _, _, retry in answers if status == 503)
        slow_counts.set()
        deadline = time.monotonic() + 5
        while httpx.post(f"{url}/v1/count", json={"text": "a"}, timeout=20).status_code != 200:
            assert time.monotonic() < deadline
