"""HTTP around the routes: methods, bodies, ids, compression, caches, logs, metrics. Everything odd is a problem."""

import asyncio
import gzip
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from search_api import Limits, Settings, create_app
from tests.conftest import TextRun
from tests.search_api.test_api import check_problem
from tests.support.coroutines import run_coroutine

ADDRESS = "/v1/sequences/text/a1/s2/r1/m0/q0"


@pytest.fixture(scope="module")
def client(text_run: TextRun) -> Iterator[TestClient]:
    limits = Limits(body_bytes=10_000, body_timeout_s=0.2)
    with TestClient(create_app(Settings(run_dirs=(text_run.run_dir,), limits=limits))) as client:
        yield client


def test_other_methods_and_paths_are_problems(client: TestClient) -> None:
    response = client.put("/v1/runs", json={})
    check_problem(response, 405, "method")
    assert response.headers["allow"] == "GET"
    check_problem(client.get("/v1/trace"), 405, "method")
    check_problem(client.request("BREW", "/v1/runs"), 405, "method")
    check_problem(client.get("/v1/nothing"), 404, "not-found")
    check_problem(client.get("/v1/runs/"), 404, "not-found")
    check_problem(client.get("/v1/runs/other"), 404, "run")
    check_problem(client.get("/v1/jobs/other"), 404, "job")


def test_head_is_get_without_its_body(client: TestClient) -> None:
    for path in ("/healthz", "/v1/runs", ADDRESS):
        head, get = client.head(path), client.get(path)
        assert head.status_code == get.status_code == 200 and head.content == b"" and get.content
        assert head.headers["content-type"] == get.headers["content-type"]
    assert client.head("/v1/nothing").status_code == 404


def test_bodies_must_be_json_of_a_size(client: TestClient) -> None:
    body = b'{"text": "a"}'
    check_problem(client.post("/v1/count", content=body), 415, "media-type")
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/xml"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ):
        check_problem(client.post("/v1/count", content=body, headers=headers), 415, "media-type")
    as_json = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post("/v1/count", content=body, headers=as_json).status_code == 200
    check_problem(client.post("/v1/count", content=b"\xc3\x28", headers=as_json), 400, "input")
    check_problem(client.post("/v1/count", content=b"[" * 5000, headers=as_json), 400, "input")
    for broken in (b"", b"{", b"[]", b"\xff\xfe", b'"text"', b'{"text": "a", "text2": NaN}', b"[" * 500):
        check_problem(client.post("/v1/count", content=broken, headers=as_json), 422, "validation")
    detail = check_problem(client.post("/v1/count", content=b" " * 10_001, headers=as_json), 413, "body-too-large")
    assert "10000 bytes" in detail

    def chunks() -> Iterator[bytes]:
        for _ in range(11):
            yield b" " * 1000

    check_problem(client.post("/v1/count", content=chunks(), headers=as_json), 413, "body-too-large")


def test_a_body_that_does_not_arrive_is_a_problem(client: TestClient) -> None:
    sent: list[Any] = []

    async def ask() -> None:
        async def receive() -> dict[str, Any]:
            await asyncio.sleep(30)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": "/v1/count", "raw_path": b"/v1/count", "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"content-length", b"100")],
            "http_version": "1.1", "scheme": "http", "server": ("test", 80), "client": ("127.0.0.1", 1), "root_path": "",
        }  # fmt: skip
        await client.app(scope, receive, send)

    run_coroutine(ask())
    assert sent[0]["status"] == 408
    assert json.loads(sent[1]["body"])["type"] == "urn:kiseki:problem:body-timeout"


def test_formats_that_are_not_offered_are_problems(client: TestClient) -> None:
    for accept in ("text/html", "image/*", "application/json;q=0", "nonsense"):
        check_problem(client.get("/v1/runs", headers={"Accept": accept}), 406, "not-acceptable")
    for accept in ("*/*", "application/*", "text/html, application/json;q=0.1", ""):
        assert client.get("/v1/runs", headers={"Accept": accept}).status_code == 200
    check_problem(
        client.post("/v1/trace:batch", json={"items": [{}]}, headers={"Accept": "text/csv"}), 406, "not-acceptable"
    )


def test_every_answer_has_an_id(client: TestClient) -> None:
    own = client.get("/healthz").headers["x-request-id"]
    assert len(own) == 16 and own != client.get("/healthz").headers["x-request-id"]
    assert client.get("/v1/nothing", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert client.get("/healthz", headers={"X-Request-ID": "a b\x7f"}).headers["x-request-id"] != "a b\x7f"
    assert client.get("/healthz").headers["x-content-type-options"] == "nosniff"


def test_answers_are_compressed_for_who_wants_it(client: TestClient, text_run: TextRun) -> None:
    body = {"text": next(iter(text_run.documents.values()))[:300], "min_length": 3}
    with client.stream("POST", "/v1/trace", json=body, headers={"Accept-Encoding": "gzip"}) as response:
        raw = b"".join(response.iter_raw())
    assert response.headers["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(raw))["spans"]
    plain = client.post("/v1/trace", json=body, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers and len(plain.content) > 2 * len(raw)


def test_sequences_are_validated_by_caches(client: TestClient) -> None:
    first = client.get(ADDRESS)
    assert first.headers["cache-control"] == "private, no-cache" and "Authorization" in first.headers["vary"]
    again = client.get(ADDRESS, headers={"If-None-Match": f'"other", {first.headers["etag"]}'})
    assert again.status_code == 304 and again.content == b"" and again.headers["etag"] == first.headers["etag"]
    assert client.get(ADDRESS, headers={"If-None-Match": '"other"'}).status_code == 200
    other = client.get("/v1/sequences/text/a1/s3/r1/m0/q0").headers["etag"]
    assert other != first.headers["etag"]
    check_problem(client.get("/v1/sequences/text/a1/s999/r1/m0/q0", headers={"If-None-Match": "*"}), 404, "sequence")
    assert client.get("/v1/runs").headers.get("etag") is None


def test_a_failure_says_nothing_but_its_id(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a secret of the server")

    monkeypatch.setattr("search_api.routes.ngrams.count_of_ngram", broken)
    response = client.post("/v1/count", json={"text": "a"}, headers={"X-Request-ID": "abc"})
    detail = check_problem(response, 500, "failed")
    assert "abc" in detail and "secret" not in response.text
    assert "a secret of the server" in caplog.text


def test_a_log_line_a_request(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kiseki.requests"):
        client.post("/v1/count", json={"text": "private words"}, headers={"X-Request-ID": "abc"})
        client.get("/v1/nothing?key=private")
    lines = [json.loads(record.message) for record in caplog.records if record.name == "kiseki.requests"]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/v1/count", 200),
        ("GET", "", 404),
    ]
    assert lines[0]["request_id"] == "abc" and lines[0]["took_ms"] > 0 and lines[0]["num_bytes"] > 0
    assert "private" not in caplog.text


def test_metrics_are_what_prometheus_reads(client: TestClient) -> None:
    def counted() -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(client.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples]
        return {(sample.name, *sorted(sample.labels.values())): sample.value for sample in samples}

    before = counted()
    client.post("/v1/count", json={"text": "a"})
    client.get("/v1/made/up/by/a/client")
    after = counted()
    key = ("kiseki_requests_total", "/v1/count", "200", "POST")
    assert after[key] == before.get(key, 0) + 1
    assert after["kiseki_request_seconds_count", "/v1/count"] == before["kiseki_request_seconds_count", "/v1/count"] + 1
    assert after["kiseki_generation", "text"] >= 1 and after["kiseki_shards_failed", "text"] == 0
    assert after["kiseki_requests_in_flight",] == 1
    assert not any("made" in part for name in after for part in name)
    assert client.get("/readyz").json() == {"status": "ready"}
