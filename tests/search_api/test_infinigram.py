"""Requests of infini-gram's clients, against a scan of the export."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from search_api import Settings, create_app
from tests.conftest import TextRun
from tests.support.export_maker import all_rows, brute_force_spans
from train_hooks.export_format.records import Row

PATH = "/compat/infinigram"


@pytest.fixture(scope="module")
def rows(text_run: TextRun) -> list[Row]:
    return all_rows(text_run.run_dir)


@pytest.fixture(scope="module")
def client(text_run: TextRun) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(run_dirs=(text_run.run_dir,)))) as client:
        yield client


def scanned(rows: list[Row], gram: list[int]) -> list[tuple[str, int]]:
    return [
        (str(row.address), at)
        for row in rows
        for at in range(len(row.tokens))
        if row.tokens[at : at + len(gram)].tolist() == gram
    ]


def test_count(client: TestClient, rows: list[Row]) -> None:
    answer = client.post(PATH, json={"index": "text", "query_type": "count", "query": " the"}).json()
    assert answer["count"] == len(scanned(rows, answer["token_ids"])) > 0
    assert answer["approx"] is False and answer["latency"] > 0
    assert answer["tokens"] == ["Ġthe"], "as the vocabulary spells it"
    by_ids = {"query_type": "count", "query_ids": answer["token_ids"]}
    assert client.post(PATH, json=by_ids).json()["count"] == answer["count"]


def test_find_and_every_document_of_it(client: TestClient, rows: list[Row]) -> None:
    found = client.post(PATH, json={"query_type": "find", "query": " that"}).json()
    ranks = [(s, rank) for s, (lo, hi) in enumerate(found["segment_by_shard"]) for rank in range(lo, hi)]
    assert len(found["segment_by_shard"]) > 1 and len(ranks) == found["cnt"] > 3
    places = []
    for s, rank in ranks:
        body = {"query_type": "get_doc_by_rank", "s": s, "rank": rank, "max_disp_len": 11}
        document = client.post(PATH, json=body).json()
        where = json.loads(document["metadata"])
        places.append((where["address"], where["offset"]))
        [(_, none), (match, clause), (_, _)] = document["spans"]
        assert (match, clause, none) == (" that", "0", None) and where["document_id"]
    assert places == scanned(rows, found["token_ids"])
    beyond = {"query_type": "get_doc_by_rank", "s": 0, "rank": found["segment_by_shard"][0][1]}
    assert "beyond" in client.post(PATH, json=beyond).json()["error"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"query_type": "ntd", "query": "a"}, "query_type"),
        ({"query_type": "count", "query": ""}, "at least one token"),
        ({"query_type": "count"}, "either text or token ids"),
        ({"query_type": "count", "query_ids": [10**6]}, "token ids in"),
        ({"query_type": "count", "query": "a", "index": "other"}, "no run"),
        ({"query_type": "get_doc_by_rank"}, "s and rank"),
        ({"query_type": "get_doc_by_rank", "s": 0, "rank": 7}, "ask `find` again"),
    ],
)
def test_errors_have_an_error(client: TestClient, body: dict[str, Any], expected: str) -> None:
    response = client.post(PATH, json=body)
    assert response.status_code in (400, 404) and expected in response.json()["error"]


def test_attribution_is_what_a_scan_finds(client: TestClient, rows: list[Row], text_run: TextRun) -> None:
    response = next(iter(text_run.documents.values()))[:200] + " and something else that nobody wrote"
    body = {
        "response": response, "minimumSpanLength": 3, "maximumFrequency": 1000, "maximumSpanDensity": 1.0,
        "delimiters": ["."], "maximumDocumentsPerSpan": 2, "maximumContextLength": 5,
    }  # fmt: skip
    answer = client.post(f"{PATH}/text/attribution", json=body).json()
    ids = client.post(PATH, json={"query_type": "count", "query": response}).json()
    assert answer["inputTokens"] == ids["tokens"]
    expected = []
    start = 0
    for end, name in [*enumerate(ids["tokens"]), (len(ids["tokens"]), ".")]:
        if "." in name:
            pieces = brute_force_spans(rows, ids["token_ids"][start:end], 3)
            expected += [(start + first, start + last, len(places)) for first, last, places in pieces]
            start = end + 1
    assert [(span["left"], span["right"], span["count"]) for span in answer["spans"]] == expected
    for span in answer["spans"]:
        assert span["text"] in span["documents"][0]["text"] and span["unigramLogprobSum"] < 0
        assert 1 <= len(span["documents"]) <= 2
    rare = client.post(f"{PATH}/text/attribution", json={**body, "maximumFrequency": 2}).json()
    assert [span["count"] for span in rare["spans"]] == [count for _, _, count in expected if count <= 2]
    few = client.post(f"{PATH}/text/attribution", json={**body, "maximumSpanDensity": 0.01}).json()
    longest = max(last - first for first, last, _ in expected)
    assert [span["length"] for span in few["spans"]] == [longest]
    assert client.post(f"{PATH}/other/attribution", json=body).status_code == 404
