"""The API over a real run: answers equal the functions', errors are problems, generations are picked up."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from indexer.reader import IndexReader
from indexer.trace.trace import TraceOptions, trace
from search_api import Limits, Settings, create_app
from tests.conftest import TextRun

Json = dict[str, object]


@pytest.fixture(scope="module")
def client(text_run: TextRun) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(run_dirs=(text_run.run_dir,), limits=Limits(body_bytes=10_000)))) as client:
        yield client


def check_problem(response: Any, status: int, kind: str) -> str:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["type"] == f"urn:kiseki:problem:{kind}"
    assert body["status"] == status
    return str(body["detail"])


def test_trace_is_the_same_as_the_function(client: TestClient, text_run: TextRun) -> None:
    passage = next(iter(text_run.documents.values()))[:200]
    body = {"text": passage, "min_length": 6, "num_hits": 3, "before_step": 20}
    answer = client.post("/v1/trace", json=body).json()
    options = TraceOptions(min_length=6, num_hits=3)
    expected = trace(IndexReader.open(text_run.run_dir), passage, options=options).to_json()
    assert answer["selection"]["before_step"] == 20
    assert answer["spans"] and len(answer["spans"]) <= len(expected["spans"])
    full = client.post("/v1/trace", json={"text": passage, "min_length": 6, "num_hits": 3}).json()
    del full["took_ms"], expected["took_ms"]
    assert full["spans"] == [{**s, "token_ids": list(s["token_ids"]), "dp_ranks": list(s["dp_ranks"]),
                              "exposures": list(s["exposures"]),
                              "hits": [{**h, "segments": list(h["segments"])} for h in s["hits"]]}
                             for s in expected["spans"]]  # fmt: skip
    assert full["documents"][0]["document_id"] == expected["documents"][0]["document_id"]
    chat = {"messages": [{"role": "user", "content": "Quote!"}, {"role": "assistant", "content": passage}]}
    by_chat = client.post("/v1/trace", json={**chat, "min_length": 6, "num_hits": 3}).json()
    assert by_chat["spans"] == full["spans"]
    for name in ("generation", "shards_total", "shards_searched", "shards_failed", "truncated"):
        assert full[name] == expected[name]


def test_sequences_and_runs(client: TestClient, text_run: TextRun) -> None:
    runs = client.get("/v1/runs").json()["runs"]
    assert [(run["run_id"], run["last_step"]) for run in runs] == [("text", text_run.num_steps)]
    one = client.get("/v1/runs/text").json()
    assert one["origin"] == runs[0]["origin"] == {"kind": "observed", "what": "by the hook, at the forward call"}
    assert one["attempts"][0]["num_writers"] == 2
    assert one["attempts"][0]["export_format_version"] == 3 and one["attempts"][0]["barrier_step"] is None
    shares = {"num_rows": one["num_sequences"], "declared": one["num_sequences"], "count": one["num_sequences"]}
    assert one["shares"] == runs[0]["shares"] == {**shares, "forward": 0, "loader": 0, "whole": 0, "slice": 0}
    sequence = client.get("/v1/sequences/text/a1/s2/r1/m0/q0").json()
    assert len(sequence["token_ids"]) == 64
    assert (sequence["evidence"], sequence["matched"], sequence["relation"]) == ("declared", "count", None)
    assert "".join(segment["text"] for segment in sequence["segments"])[:20] == sequence["text"][:20]
    assert client.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"text": ""}, 400, "query"),
        ({}, 400, "query"),
        ({"text": "a", "token_ids": [1]}, 400, "query"),
        ({"text": "a", "messages": [{"content": "b"}]}, 400, "query"),
        ({"messages": []}, 400, "query"),
        ({"token_ids": [5000]}, 400, "query"),
        ({"token_ids": [-1]}, 422, "validation"),
        ({"text": "a", "min_length": 0}, 422, "validation"),
        ({"text": "a", "num_hits": 10**9}, 422, "validation"),
        ({"text": "a", "first_step": 5, "last_step": 3}, 400, "query"),
        ({"text": "a", "surprise": 1}, 422, "validation"),
        ({"text": "a", "run": "other"}, 404, "run"),
        ({"text": "a" * 20_000}, 413, "body-too-large"),
    ],
)
def test_bad_requests_are_problems(client: TestClient, body: Json, status: int, kind: str) -> None:
    assert check_problem(client.post("/v1/trace", json=body), status, kind)


def test_bad_addresses_are_problems(client: TestClient) -> None:
    check_problem(client.get("/v1/sequences/nonsense"), 400, "input")
    check_problem(client.get("/v1/sequences/text/a1/s999/r0/m0/q0"), 404, "sequence")
    check_problem(client.get("/v1/sequences/other/a1/s1/r0/m0/q0"), 404, "run")
    check_problem(client.get("/v1/nothing"), 404, "not-found")
