"""Search, steps, explanations and documents over HTTP: the same as the functions, page by page, in every form."""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from indexer.documents.history import document_history
from indexer.reader import IndexReader
from indexer.search.search import SearchOptions, search
from indexer.steps.explain import explain_step
from indexer.steps.steps import read_steps
from search_api import Limits, Settings, create_app
from search_api.negotiation import ARROW, CSV
from tests.conftest import TextRun
from tests.search_api.test_api import check_problem

Json = dict[str, Any]


@pytest.fixture(scope="module")
def client(text_run: TextRun) -> Iterator[TestClient]:
    limits = Limits(deadline_s=20, explain_deadline_s=30)
    with TestClient(create_app(Settings(run_dirs=(text_run.run_dir,), limits=limits))) as client:
        yield client


@pytest.fixture(scope="module")
def reader(text_run: TextRun) -> IndexReader:
    return IndexReader.open(text_run.run_dir)


def pages(client: TestClient, method: str, path: str, name: str, question: Json) -> list[Json]:
    """Rows of all pages, which are all of one generation."""
    found: list[Json] = []
    cursor = None
    while True:
        asked = {**question, **({"cursor": cursor} if cursor else {})}
        response = client.post(path, json=asked) if method == "POST" else client.get(path, params=asked)
        answer = response.json()
        found += answer[name]
        cursor = answer["next_cursor"]
        assert answer["truncated"] is (cursor is not None)
        if cursor is None:
            return found


@pytest.mark.parametrize("sort", ["relevance", "step", "step_desc"])
def test_search(client: TestClient, reader: IndexReader, sort: str) -> None:
    options = SearchOptions(limit=1000, sort=sort, facets=True)  # type: ignore[arg-type]
    expected = search(reader, "the AND of", options)
    found = pages(client, "POST", "/v1/search", "hits", {"query": "the AND of", "limit": 7, "sort": sort})
    assert [(hit["address"], hit["start"], hit["end"]) for hit in found] == [
        (str(hit.address), hit.start, hit.end) for hit in expected.hits
    ]
    snippets = [hit.snippet for hit in expected.hits]
    assert [hit["snippet"] for hit in found] == [snippet and snippet.text for snippet in snippets]
    one = client.post("/v1/search", json={"query": "the AND of", "facets": True, "limit": 0}).json()
    assert one["count"] == expected.count == len(found) > 7 and one["hits"] == []
    assert expected.facets is not None
    assert one["facets"]["sources"] == [{"value": f.value, "count": f.count} for f in expected.facets.sources]


def test_search_forms_and_bad_queries(client: TestClient) -> None:
    body: Json = {"query": "the", "limit": 5}
    rows = client.post("/v1/search", json=body).json()["hits"]
    response = client.post("/v1/search", json=body, headers={"Accept": ARROW})
    assert pa.ipc.open_stream(response.content).read_all().to_pylist() == rows
    assert client.post("/v1/search", json=body, headers={"Accept": CSV}).text.count("\r\n") >= 6
    for query in ("", "(", "a AND", "(" * 100 + "a" + ")" * 100, " OR ".join("abcdefgh" * 20), "x~99"):
        check_problem(client.post("/v1/search", json={"query": query}), 400, "query")
    check_problem(client.post("/v1/search", json={"query": "a" * 10_001}), 422, "validation")
    check_problem(client.post("/v1/search", json={"query": "a", "limit": 101}), 422, "validation")
    cursor = client.post("/v1/search", json=body).json()["next_cursor"]
    check_problem(client.post("/v1/search", json={**body, "query": "a", "cursor": cursor}), 400, "cursor")


def test_snippets_are_capped(text_run: TextRun) -> None:
    limits = Limits(snippet_tokens=3, deadline_s=20)
    with TestClient(create_app(Settings(run_dirs=(text_run.run_dir,), limits=limits))) as client:
        answer = client.post("/v1/search", json={"query": "the", "limit": 20}).json()
    assert answer["snippets_cut"]
    for hit in answer["hits"]:
        begin, end = hit["highlights"][0]
        shown = hit["snippet"][begin - hit["snippet_start"] : end - hit["snippet_start"]]
        assert shown.lower() == "the" and len(hit["snippet"]) <= 3 + 2 * 12


def test_steps(client: TestClient, reader: IndexReader) -> None:
    expected = read_steps(reader).to_json()["steps"]
    found = pages(client, "GET", "/v1/steps", "steps", {"limit": 9})
    assert [(step["global_step"], step["loss"], step["status"]) for step in found] == [
        (step["global_step"], step["loss"], step["status"]) for step in expected
    ]
    part = client.get("/v1/steps", params={"first_step": 3, "last_step": 5}).json()["steps"]
    assert [step["global_step"] for step in part] == [3, 4, 5]
    table = client.get("/v1/steps", headers={"Accept": ARROW})
    assert pa.ipc.open_stream(table.content).read_all().to_pylist() == found
    thinned = client.get("/v1/steps", params={"max_points": 20}).json()
    assert thinned["num_steps"] == len(expected) and thinned["num_spikes"] == 0 and thinned["truncated"]
    assert thinned["next_cursor"] is None and all(step in found for step in thinned["steps"])
    assert [thinned["steps"][end]["global_step"] for end in (0, -1)] == [1, len(expected)]
    whole = client.get("/v1/steps", params={"max_points": 1000}).json()
    assert whole["steps"] == found and not whole["truncated"]
    check_problem(client.get("/v1/steps", params={"max_points": 3}), 422, "validation")
    cursor = client.get("/v1/steps", params={"limit": 9}).json()["next_cursor"]
    check_problem(client.get("/v1/steps", params={"max_points": 20, "cursor": cursor}), 400, "cursor")
    check_problem(client.get("/v1/steps", params={"attempt": 9}), 400, "query")
    check_problem(client.get("/v1/steps", params={"surprise": 1}), 422, "validation")


def test_explanations(client: TestClient, reader: IndexReader) -> None:
    expected = explain_step(reader, 50, window=20, limit=5).to_json()
    found = client.get("/v1/steps/50:explain", params={"window": 20, "limit": 5}).json()
    assert found["shards_failed"] == 0
    for name in expected.keys() - {"took_ms"}:
        assert found[name] == json.loads(json.dumps(expected[name])), name
    check_problem(client.get("/v1/steps/1:explain"), 400, "query")
    check_problem(client.get("/v1/steps/9999:explain"), 400, "query")
    check_problem(client.get("/v1/steps/x:explain"), 422, "validation")


def test_documents(client: TestClient, reader: IndexReader, text_run: TextRun) -> None:
    (source, document_id), text = next(iter(text_run.documents.items()))
    path = f"/v1/documents/{source}/{document_id}"
    expected = document_history(reader, source, document_id, limit=1000)
    found = pages(client, "GET", path, "exposures", {"limit": 2})
    assert [(row["address"], row["text"]) for row in found] == [
        (str(exposure.address), exposure.text) for exposure in expected.exposures
    ]
    once = "".join(row["text"] for row in found[: len(found) // 2])
    assert once.startswith(text[:100])
    whole = client.get(path, params={"with_text": False, "before_step": 20}).json()
    assert whole["num_exposures"] * 2 == expected.num_exposures and whole["exposures"][0]["text"] is None
    table = client.get(path, headers={"Accept": ARROW})
    assert [row["address"] for row in pa.ipc.open_stream(table.content).read_all().to_pylist()]
    check_problem(client.get(f"/v1/documents/{source}/nothing"), 404, "document")
    check_problem(client.get(path, params={"source": "x"}), 422, "validation")


def test_sql(text_run: TextRun, reader: IndexReader, client: TestClient) -> None:
    statement = "SELECT global_step, loss, loss AS loss FROM steps ORDER BY global_step LIMIT 4"
    check_problem(client.post("/v1/sql", json={"sql": statement}), 403, "forbidden")
    with TestClient(create_app(Settings(run_dirs=(text_run.run_dir,), sql=True))) as open_client:
        answer = open_client.post("/v1/sql", json={"sql": statement}).json()
        expected = reader.sql("SELECT global_step, loss FROM steps ORDER BY global_step LIMIT 4")
        assert answer["columns"] == ["global_step", "loss", "loss_2"] and not answer["truncated"]
        assert answer["rows"] == [{**row, "loss_2": row["loss"]} for row in expected]
        table = open_client.post("/v1/sql", json={"sql": statement}, headers={"Accept": ARROW})
        assert pa.ipc.open_stream(table.content).read_all().to_pylist() == answer["rows"]
        odd = "SELECT 'nan'::DOUBLE AS a, DATE '2026-01-02' AS b, '\\xAB'::BLOB AS c, 1.5::DECIMAL(3, 1) AS d, [1, NULL] AS e"
        assert open_client.post("/v1/sql", json={"sql": odd}).json()["rows"] == [
            {"a": "nan", "b": "2026-01-02", "c": "ab", "d": "1.5", "e": [1, None]}
        ]
        many = open_client.post("/v1/sql", json={"sql": "SELECT range AS a FROM range(20000)"}).json()
        assert many["truncated"] and len(many["rows"]) == 10_000
        for bad in (
            "DROP TABLE runs",
            "SELECT * FROM read_csv('/etc/passwd')",
            "SELECT nothing",
            "COPY runs TO 'x'",
            "x",
        ):
            check_problem(open_client.post("/v1/sql", json={"sql": bad}), 400, "query")
