"""Rows in every form are the same rows; pages are all of them, on one generation; cursors cannot be bent."""

import csv
import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from search_api import Limits, Settings, create_app
from search_api.negotiation import ARROW, CSV, NDJSON, PARQUET, ROW_FORMATS, choose_media_type
from search_api.problems import Problem
from tests.conftest import TextRun
from tests.search_api.test_api import check_problem
from tests.support.export_maker import all_rows

Json = dict[str, Any]


@pytest.fixture(scope="module")
def client(text_run: TextRun) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(run_dirs=(text_run.run_dir,)))) as client:
        yield client


def decoded(media_type: str, content: bytes) -> list[Json]:
    """Rows by a reader that is not ours."""
    if media_type == NDJSON:
        return [json.loads(line) for line in content.decode().splitlines()]
    if media_type == CSV:
        return list(csv.DictReader(io.StringIO(content.decode())))
    table = pq.read_table(pa.BufferReader(content)) if media_type == PARQUET else pa.ipc.open_stream(content).read_all()
    return list(table.to_pylist())


def test_hits_are_the_same_in_every_form(client: TestClient) -> None:
    body = {"text": "the", "limit": 7, "context_tokens": 3}
    answer = client.post("/v1/hits", json=body).json()
    assert len(answer["hits"]) == 7 and answer["truncated"] and answer["next_cursor"]
    for media_type in (NDJSON, CSV, PARQUET, ARROW):
        response = client.post("/v1/hits", json=body, headers={"Accept": media_type})
        assert response.headers["content-type"].partition(";")[0] == media_type
        assert response.headers["kiseki-generation"] == str(answer["generation"])
        assert response.headers["kiseki-truncated"] == "true" and response.headers["kiseki-next-cursor"]
        rows = decoded(media_type, response.content)
        if media_type == CSV:
            expected = [{k: "" if v is None else str(v) for k, v in row.items()} for row in answer["hits"]]
            assert rows == expected
        else:
            assert rows == answer["hits"]


def test_sequences_and_attempts_are_the_same_in_every_form(client: TestClient) -> None:
    body = {"addresses": ["text/a1/s2/r1/m0/q0", "text/a1/s999/r1/m0/q0", "text/a1/s1/r0/m0/q1"]}
    answer = client.post("/v1/sequences:batchGet", json=body).json()
    assert [row["address"] for row in answer["sequences"]] == [body["addresses"][0], body["addresses"][2]]
    assert answer["missing"] == [body["addresses"][1]] and answer["truncated"]
    single = client.get("/v1/sequences/text/a1/s2/r1/m0/q0").json()
    assert answer["sequences"][0] == {name: single[name] for name in answer["sequences"][0]}
    attempts = client.get("/v1/runs/text/attempts").json()["attempts"]
    assert attempts == client.get("/v1/runs/text").json()["attempts"]
    for media_type in (NDJSON, PARQUET, ARROW):
        headers = {"Accept": media_type}
        rows = decoded(media_type, client.post("/v1/sequences:batchGet", json=body, headers=headers).content)
        assert rows == answer["sequences"]
        assert decoded(media_type, client.get("/v1/runs/text/attempts", headers=headers).content) == attempts
    cells = decoded(CSV, client.post("/v1/sequences:batchGet", json=body, headers={"Accept": CSV}).content)
    assert json.loads(cells[0]["token_ids"]) == answer["sequences"][0]["token_ids"]
    assert json.loads(cells[0]["segments"]) == answer["sequences"][0]["segments"]


def test_pages_are_every_place_once(client: TestClient, text_run: TextRun) -> None:
    body: Json = {"text": " the", "limit": 11, "lineage": "all"}
    first = client.post("/v1/hits", json=body).json()
    found, page = list(first["hits"]), first
    while page["next_cursor"]:
        page = client.post("/v1/hits", json={**body, "cursor": page["next_cursor"]}).json()
        assert page["generation"] == first["generation"]
        found += page["hits"]
    gram = first["token_ids"]
    scanned = [
        (str(row.address), at)
        for row in all_rows(text_run.run_dir)
        for at in range(len(row.tokens))
        if row.tokens[at : at + len(gram)].tolist() == gram
    ]
    assert [(hit["address"], hit["offset"]) for hit in found] == scanned
    count = client.post("/v1/count", json={"text": " the", "lineage": "all"}).json()
    assert (count["count"], count["token_ids"], count["count_relation"]) == (len(scanned), gram, "eq")
    before = client.post("/v1/count", json={"text": " the", "before_step": 5}).json()["count"]
    assert before == sum(int(address.split("/")[2][1:]) < 5 for address, _ in scanned)


def test_cursors_cannot_be_bent(client: TestClient, text_run: TextRun) -> None:
    body: Json = {"text": " the", "limit": 2}
    cursor = client.post("/v1/hits", json=body).json()["next_cursor"]
    assert client.post("/v1/hits", json={**body, "cursor": cursor}).status_code == 200
    flipped = ("B" if cursor[0] == "A" else "A") + cursor[1:]
    for bad in (flipped, cursor[:-4], "x", "", "é", cursor + cursor, "!" * 100):
        check_problem(client.post("/v1/hits", json={**body, "cursor": bad}), 400, "cursor")
    for other in ({"text": " a"}, {"before_step": 3}, {"limit": 3}, {"source": "x"}):
        check_problem(client.post("/v1/hits", json={**body, **other, "cursor": cursor}), 400, "cursor")
    with TestClient(create_app(Settings(run_dirs=(text_run.run_dir,)))) as another:
        check_problem(another.post("/v1/hits", json={**body, "cursor": cursor}), 400, "cursor")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", ROW_FORMATS[0]),
        ("*/*", ROW_FORMATS[0]),
        ("text/*", CSV),
        ("text/csv;q=0.5, application/x-ndjson", NDJSON),
        ("application/json;q=0, */*", NDJSON),
        ("application/vnd.apache.parquet", PARQUET),
        ("TEXT/CSV", CSV),
        ("text/csv;q=nonsense, application/vnd.apache.arrow.stream;q=0.001", ARROW),
        ("text/html", None),
        ("*/*;q=0", None),
    ],
)
def test_the_form_that_is_liked_best(accept: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(Problem):
            choose_media_type(accept, ROW_FORMATS)
    else:
        assert choose_media_type(accept, ROW_FORMATS) == expected


def test_caps_are_said(text_run: TextRun) -> None:
    limits = Limits(snippet_tokens=2, sequence_tokens=100)
    with TestClient(create_app(Settings(run_dirs=(text_run.run_dir,), limits=limits))) as client:
        body: Json = {"text": " the", "limit": 3, "context_tokens": 2}
        within = client.post("/v1/hits", json=body).json()
        beyond = client.post("/v1/hits", json={**body, "context_tokens": 40}).json()
        assert not within["snippets_cut"] and beyond["snippets_cut"] and beyond["hits"] == within["hits"]
        traced = client.post("/v1/trace", json={"text": " the best of the", "min_length": 1}).json()
        assert traced["snippets_cut"]
        addresses = ["text/a1/s1/r0/m0/q0", "text/a1/s2/r0/m0/q0"]
        detail = check_problem(client.post("/v1/sequences:batchGet", json={"addresses": addresses}), 400, "query")
        assert "100 tokens" in detail and "1 at a time" in detail
