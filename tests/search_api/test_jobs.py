"""Batches and jobs: the same traces as one by one, with progress, cancellation, bounds and an end."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from search_api import Limits, Settings, create_app
from search_api.routes.traces import trace_line
from tests.conftest import TextRun
from tests.search_api.test_api import check_problem
from tests.support.live_server import live_server

Json = dict[str, Any]


def items_of(text_run: TextRun) -> list[Json]:
    texts = [text[:150] for text in list(text_run.documents.values())[:3]]
    return [{"text": texts[0], "min_length": 5}, {"text": ""}, {"text": texts[1], "before_step": 9}, {"text": texts[2]}]


@pytest.fixture(scope="module")
def client(text_run: TextRun) -> Iterator[TestClient]:
    limits = Limits(jobs_kept=3, job_keep_s=2.0)
    with TestClient(create_app(Settings(run_dirs=(text_run.run_dir,), limits=limits))) as client:
        yield client


def check_lines(client: TestClient, items: list[Json], lines: list[str]) -> None:
    for index, (item, line) in enumerate(zip(items, lines, strict=True)):
        found, alone = json.loads(line), client.post("/v1/trace", json=item).json()
        assert found["index"] == index
        if "trace" in found:
            assert {**found["trace"], "took_ms": 0} == {**alone, "took_ms": 0}
        else:
            assert found["problem"] == alone and alone["type"] == "urn:kiseki:problem:query"


def test_a_batch_is_its_traces(client: TestClient, text_run: TextRun) -> None:
    items = items_of(text_run)
    response = client.post("/v1/trace:batch", json={"items": items})
    assert response.headers["content-type"] == "application/x-ndjson"
    check_lines(client, items, response.text.splitlines())
    check_problem(client.post("/v1/trace:batch", json={"items": [{}] * 33}), 422, "validation")
    check_problem(client.post("/v1/trace:batch", json={"items": []}), 422, "validation")
    check_problem(client.post("/v1/trace:batch", json={"items": [{}], "run": "other"}), 404, "run")


def test_a_job_from_its_start_to_its_end(client: TestClient, text_run: TextRun) -> None:
    items = items_of(text_run)
    response = client.post("/v1/jobs", json={"items": items})
    assert response.status_code == 202 and response.json()["num_items"] == 4
    place = response.headers["location"]
    with client.stream("GET", f"{place}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = [block.splitlines() for block in "".join(stream.iter_text()).strip().split("\n\n")]
    states = [json.loads(lines[1].removeprefix("data: ")) for lines in events if lines[0].startswith("event")]
    done = [state["num_done"] for state in states]
    assert done == sorted(done) and done[-1] == 4 and events[-1][0] == "event: end"
    assert states[-1]["state"] == "done" and states[-1]["num_problems"] == 1
    assert client.get(place).json() == states[-1]
    check_lines(client, items, client.get(f"{place}/results").text.splitlines())
    client.delete(place)
    check_problem(client.get(place), 404, "job")
    check_problem(client.get(f"{place}/events"), 404, "job")


def test_results_expire_and_jobs_are_bounded(client: TestClient) -> None:
    places = [client.post("/v1/jobs", json={"items": [{"text": "a b"}]}).headers["location"] for _ in range(3)]
    response = client.post("/v1/jobs", json={"items": [{"text": "a b"}]})
    check_problem(response, 503, "busy")
    assert response.headers["retry-after"]
    deadline = time.monotonic() + 10
    while any(client.get(place).status_code == 200 for place in places):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert client.post("/v1/jobs", json={"items": [{"text": "a b"}]}).status_code == 202


def test_results_that_are_too_large_fail_the_job(text_run: TextRun) -> None:
    limits = Limits(job_result_bytes=3000)
    with TestClient(create_app(Settings(run_dirs=(text_run.run_dir,), limits=limits))) as client:
        place = client.post("/v1/jobs", json={"items": items_of(text_run)}).headers["location"]
        client.get(f"{place}/events")
        state = client.get(place).json()
        assert state["state"] == "failed" and "3000 bytes" in state["detail"]
        assert client.get(f"{place}/results").text == ""


def test_a_job_that_runs_is_cancelled(text_run: TextRun, monkeypatch: pytest.MonkeyPatch) -> None:
    release, num = threading.Event(), []

    def slow(*arguments: Any) -> Any:
        num.append(1)
        if len(num) > 1:
            release.wait(20)
        return trace_line(*arguments)

    monkeypatch.setattr("search_api.routes.jobs.trace_line", slow)
    with live_server(Settings(run_dirs=(text_run.run_dir,))) as url:
        place = url + httpx.post(f"{url}/v1/jobs", json={"items": items_of(text_run)}).headers["location"]
        waiting = httpx.post(f"{url}/v1/jobs", json={"items": [{"text": "a b"}]}).json()
        with httpx.stream("GET", f"{place}/events", timeout=10) as stream:
            lines = stream.iter_lines()
            while '"num_done":1' not in next(lines):
                pass
            assert httpx.get(f"{url}/v1/jobs/{waiting['job']}").json()["state"] == "waiting"
            assert httpx.delete(place).json()["state"] == "cancelled"
            rest = "\n".join(lines)
        assert "event: end" in rest and "cancelled" in rest
        release.set()
        events = httpx.get(f"{url}/v1/jobs/{waiting['job']}/events", timeout=10).text
        assert '"state":"done"' in events
        assert len(num) == 3, "the other items of the cancelled job were not traced"
