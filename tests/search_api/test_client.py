"""The client against a real server: answers, pages, tables, jobs, retries, and its block in the README."""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.build.update import update_index
from indexer.documents.history import document_history
from indexer.reader import IndexReader
from indexer.search.search import SearchOptions, search
from indexer.selection.rows import Selection
from indexer.steps.explain import explain_step
from indexer.trace.counts import count_of_ngram
from search_api import Limits, Settings
from search_api.client import ApiError, Client, ClientOptions, RequestError
from search_api.client.asynchronous import AsyncClient
from search_api.client.trace_html import marked_html
from tests.conftest import TextRun
from tests.support.coroutines import run_coroutine
from tests.support.export_maker import MadeStep, make_attempt
from tests.support.live_server import live_server
from train_hooks import Segment
from train_hooks.export_format.writing.attempts import RunSpec

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture(scope="module")
def url(text_run: TextRun) -> Iterator[str]:
    limits = Limits(requests_per_minute=100_000, deadline_s=20, explain_deadline_s=30)
    with live_server(Settings(run_dirs=(text_run.run_dir,), limits=limits, sql=True)) as url:
        yield url


ODD_NAMES = [("a/b", "c/d"), ("", "../x"), ("a b?c#d%2F&e=f", "日本 語"), ("a", "b/c/d"), ("..", ".")]


@pytest.fixture(scope="module")
def odd_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    run_dir = tmp_path_factory.mktemp("odd")
    segments = [
        [Segment(start=0, length=8, source=source, document_id=document_id, document_token_offset=0)]
        for source, document_id in ODD_NAMES
    ]
    rows = np.arange(8 * len(ODD_NAMES)).reshape(-1, 8)
    step = MadeStep(microbatches={0: [rows]}, segments={0: [segments]})
    make_attempt(run_dir, RunSpec(sequence_length=8, vocab_size=100, run_id="odd", config={}), [step])
    update_index(run_dir)
    with live_server(Settings(run_dirs=(run_dir,))) as url:
        yield url


@pytest.fixture(scope="module")
def passage(text_run: TextRun) -> str:
    return next(iter(text_run.documents.values()))[:150]


def test_answers(url: str, text_run: TextRun, passage: str) -> None:
    with Client(url) as client:
        assert [run["run_id"] for run in client.runs()] == ["text"]
        assert client.run("text")["attempts"][0]["attempt"] == 1
        found = client.trace(passage, min_length=5, before_step=30, num_hits=2)
        assert found.spans and found.documents and found["generation"] == found.generation
        assert found.complete is (not found["truncated"])
        expected = count_of_ngram(
            IndexReader.open(text_run.run_dir), found.spans[0]["token_ids"], Selection(before_step=30)
        )
        assert client.count(found.spans[0]["token_ids"], before_step=30) == expected.count == found.spans[0]["count"]
        assert client.trace(messages=[{"role": "assistant", "content": passage}]).spans
        address = found.spans[0]["hits"][0]["address"]
        assert client.sequence(address)["address"] == address
        frame = found.to_pandas()
        assert list(frame["count"]) == [span["count"] for span in found.spans] == found.to_arrow()["count"].to_pylist()


def test_pages_and_tables(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search_api.client.requests.ROWS_AT_ONCE", 25)
    monkeypatch.setattr("search_api.client.sync.SEQUENCES_AT_ONCE", 3)
    with Client(url) as client:
        rows = list(client.hits(" the", context_tokens=2))
        assert len(rows) == client.count(" the") > 10
        assert client.hits(" the", context_tokens=2).to_arrow().to_pylist() == rows
        assert len(client.hits(" the").to_pandas()) == len(rows)
        addresses = list(dict.fromkeys(row["address"] for row in rows))
        sequences = client.sequences([*addresses, "text/a1/s999/r0/m0/q0"])
        assert [row["address"] for row in sequences] == addresses
        assert sequences.to_arrow().num_rows == len(addresses) == len(sequences.to_pandas())
        assert client.sequences([]) == []


def test_searches(url: str, text_run: TextRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search_api.client.requests.SEARCHED_AT_ONCE", 7)
    expected = search(IndexReader.open(text_run.run_dir), "the", SearchOptions(limit=1000, sort="step", facets=True))
    assert expected.facets is not None and expected.count > 14
    with Client(url) as client:
        found = client.search("the", sort="step")
        assert [row["address"] for row in found] == [str(hit.address) for hit in expected.hits]
        assert found.to_arrow().num_rows == expected.count and found.page().complete is False
        first = client.search("the", sort="step", facets=True, limit=3, run="text").page()
        assert first["count"] == expected.count and len(first["hits"]) == 3
        assert first["facets"]["sources"] == [dataclasses.asdict(count) for count in expected.facets.sources]
        second = client.search("the", sort="step", facets=True, limit=3, run="text").page(first["next_cursor"])
        assert second["hits"][0]["address"] == str(expected.hits[3].address)
        assert client.search("the", before_step=10).to_arrow().num_rows < expected.count
        with pytest.raises(RequestError, match=r"expected \) for this"):
            client.search("(the").page()


def test_steps_and_sql(url: str, text_run: TextRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search_api.client.requests.ROWS_AT_ONCE", 9)
    reader = IndexReader.open(text_run.run_dir)
    expected = reader.sql("SELECT global_step, num_tokens FROM steps WHERE canonical ORDER BY 1")
    with Client(url) as client:
        rows = [{name: row[name] for name in ("global_step", "num_tokens")} for row in client.steps()]
        assert rows == expected and len(rows) > 9
        assert [row["global_step"] for row in client.steps(first_step=5, last_step=6)] == [5, 6]
        explained = client.explain(50, window=20, limit=3)
        of_function = explain_step(reader, 50, window=20, limit=3).to_json()
        assert explained["features"] and {**explained, "took_ms": 0} | {**of_function, "took_ms": 0} == {
            **explained, "took_ms": 0
        }  # fmt: skip
        table = client.sql("SELECT global_step, num_tokens FROM steps WHERE canonical ORDER BY 1")
        assert list(table) == expected and not table.truncated
        assert str(table.to_arrow().schema.field("num_tokens").type) == "int64"
        assert client.sql("SELECT * FROM range(20000)").truncated
        with pytest.raises(RequestError, match="attempt"):
            client.steps(attempt=9).page()


def test_documents_by_any_name(url: str, text_run: TextRun, odd_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search_api.client.requests.ROWS_AT_ONCE", 1)
    source, document_id = next(iter(text_run.documents))
    expected = document_history(IndexReader.open(text_run.run_dir), source, document_id)
    with Client(url) as client:
        whole = client.document(source, document_id)
        assert [row["address"] for row in whole] == [str(exposure.address) for exposure in expected.exposures]
        assert whole.page()["num_tokens_distinct"] == expected.num_tokens_distinct
        assert client.document(source, document_id, with_text=False).page()["exposures"][0]["text"] is None
        with pytest.raises(RequestError) as caught:
            client.document(source, "nothing").page()
        assert caught.value.kind == "document"
    with Client(odd_url) as client:
        for source, document_id in ODD_NAMES:
            found = client.document(source, document_id).page()
            assert (found["source"], found["document_id"]) == (source, document_id) and found["num_exposures"] == 1


def test_batches_and_jobs(url: str, passage: str) -> None:
    items = [{"text": passage}, {"text": ""}, {"text": passage[:60]}]
    with Client(url) as client:
        batch = list(client.trace_batch(items))
        assert [line["index"] for line in batch] == [0, 1, 2]
        assert batch[1]["problem"]["status"] == 400
        job, seen = client.job(items), []
        state = job.wait(lambda done, total: seen.append((done, total)), interval_s=0.02)
        assert state["state"] == "done" and seen[-1] == (3, 3)
        results = list(job.results())
        assert results[0]["trace"]["spans"] == batch[0]["trace"]["spans"] and results[1] == batch[1]
        job.cancel()
        with pytest.raises(RequestError) as caught:
            job.state()
        assert (caught.value.kind, caught.value.status) == ("job", 404) and caught.value.request_id
        with pytest.raises(RequestError, match="at most 32 items"):
            list(client.trace_batch(items * 11))


def test_asynchronously(url: str, passage: str) -> None:
    async def main() -> None:
        async with AsyncClient(url) as client:
            traces = await asyncio.gather(*(client.trace(passage, min_length=5) for _ in range(5)))
            assert all(found.spans == traces[0].spans for found in traces)
            rows = [row async for row in client.hits(" the")]
            assert len(rows) == await client.count(" the")
            assert (await client.runs())[0]["run_id"] == (await client.run("text"))["run_id"]
            address = rows[0]["address"]
            assert (await client.sequence(address))["address"] == (await client.sequences([address]))[0]["address"]
            assert [line["index"] async for line in client.trace_batch([{"text": "a"}, {"text": passage}])] == [0, 1]
            with pytest.raises(RequestError):
                await client.sequence("nonsense")

    run_coroutine(main())


def test_the_other_questions_asynchronously(url: str, text_run: TextRun) -> None:
    source, document_id = next(iter(text_run.documents))

    async def main() -> None:
        with Client(url) as same:
            async with AsyncClient(url) as client:
                found = client.search("the", limit=10, sort="step")
                rows = [row async for row in found]
                assert rows == list(same.search("the", sort="step"))
                first = await found.page()
                assert (await found.page(first["next_cursor"]))["hits"][0]["address"] == rows[10]["address"]
                assert (await client.steps(last_step=9).to_arrow()).num_rows == 9
                assert (await client.explain(50))["rows"] == same.explain(50)["rows"]
                exposures = [row async for row in client.document(source, document_id)]
                assert exposures == list(same.document(source, document_id))
                assert await client.sql("SELECT 1 AS one") == [{"one": 1}]

    run_coroutine(main())


def test_a_trace_shows_itself_escaped(url: str) -> None:
    hostile = "<script>alert(1)</script> & the <b>'best\""
    with Client(url) as client:
        shown = client.trace(hostile, min_length=1)._repr_html_()
    assert "<mark" in shown and "<table>" in shown and "&amp;" in shown
    plain = re.sub(r"</?(?:mark|span|sup|b|div|table|tr|th|td|small|br)(?: [^<>]*)?>", "", shown)
    assert "<" not in plain and "alert(1)" in plain
    span = {"char_start": 0, "char_end": 3, "rarity_rank": 0, "count": 2}
    assert "&lt;i&gt;" in marked_html("<i>", [span])


class Answers(BaseHTTPRequestHandler):
    """Gives scripted answers, one after the other, and writes down when it was asked."""

    script: Sequence[tuple[int, dict[str, str]]] = ()
    asked: list[float]

    def do_GET(self) -> None:
        status, headers = self.script[min(len(self.asked), len(self.script) - 1)]
        self.asked.append(time.monotonic())
        self.rfile.read(int(self.headers.get("content-length") or 0))
        body = json.dumps(
            {"runs": [], "job": "x", "count": 1, "detail": "no", "type": "urn:kiseki:problem:busy"}
        ).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def scripted(*script: tuple[int, dict[str, str]]) -> Iterator[tuple[str, list[float]]]:
    handler = type("Scripted", (Answers,), {"script": script, "asked": []})
    server = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


OPTIONS = ClientOptions(first_wait_s=0.01, max_retries=3, max_wait_s=2)


def test_it_asks_again_as_it_is_told() -> None:
    with (
        scripted((503, {"Retry-After": "1"}), (429, {}), (502, {}), (200, {})) as (url, asked),
        Client(url, OPTIONS) as client,
    ):
        assert client.runs() == []
        waits = [after - before for before, after in itertools.pairwise(asked)]
        assert len(waits) == 3 and 1.0 <= waits[0] < 1.5 and max(waits[1:]) < 0.5


def test_it_gives_up() -> None:
    with scripted((503, {})) as (url, asked), Client(url, OPTIONS) as client:
        with pytest.raises(ApiError) as caught:
            client.count("a")
        assert caught.value.kind == "busy" and len(asked) == 4
    with scripted((429, {"Retry-After": "3600"})) as (url, asked), Client(url, OPTIONS) as client:
        with pytest.raises(RequestError):
            client.runs()
        assert len(asked) == 1
    with scripted((400, {})) as (url, asked), Client(url, OPTIONS) as client:
        with pytest.raises(RequestError, match="no"):
            client.runs()
        assert len(asked) == 1
    with Client("http://127.0.0.1:9", OPTIONS) as client, pytest.raises(ApiError, match="does not answer"):
        client.runs()


def test_a_job_is_started_once() -> None:
    with scripted((504, {})) as (url, asked), Client(url, OPTIONS) as client:
        with pytest.raises(ApiError):
            client.job([{"text": "a"}])
        assert len(asked) == 1
    with scripted((503, {}), (200, {})) as (url, asked), Client(url, OPTIONS) as client:
        assert client.job([{"text": "a"}]).name == "x" and len(asked) == 2


def test_the_block_in_the_readme_runs(url: str, passage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    [block] = [block for block in blocks if "kiseki.Client" in block]
    names: dict[str, Any] = {}
    exec(
        block.replace("http://127.0.0.1:8700", url).replace('"Desire and expectation rolled into one."', "PASSAGE"),
        {"PASSAGE": passage},
        names,
    )
    assert names["found"].spans and names["places"].num_rows > 0 and names["sequence"]["token_ids"]
    monkeypatch.setenv("KISEKI_API_KEY", "abc")
    assert ClientOptions().headers() == {"Authorization": "Bearer abc"}
    assert ClientOptions(key="").headers() == {}


def test_the_client_loads_no_server_and_no_arrow() -> None:
    code = "import search_api.client, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert loaded & {"pyarrow", "numpy", "pandas", "fastapi", "pydantic", "indexer", "ui"} == set()
    assert {name for name in loaded if name.startswith("search_api.") and ".client" not in name} == set()
