"""The client for programs that wait for each answer. `AsyncClient` is the same for programs that do not.

    with Client("http://127.0.0.1:8700") as client:
        found = client.trace("what a model wrote", min_length=6)
        for hit in client.hits("a phrase"):
            ...

Answers are the API's JSON; problems become ApiError, those of 4xx RequestError.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import httpx

from search_api.client.answers import ApiError, Found, Json, RequestError, Table, Traced, concat_tables, read_arrow
from search_api.client.requests import (
    ARROW,
    SEQUENCES_AT_ONCE,
    ClientOptions,
    DocumentArguments,
    ExplainArguments,
    Request,
    SearchArguments,
    SelectionArguments,
    StepsArguments,
    TraceArguments,
    document_request,
    explain_request,
    get,
    hits_request,
    ngram_body,
    post,
    search_request,
    sequence_path,
    sql_request,
    steps_request,
    trace_body,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ApiError", "Client", "ClientOptions", "Job", "RequestError", "Rows"]


class Client:
    """One server. Use it as a context manager, or call `close`. Safe to share between threads."""

    def __init__(self, base_url: str, options: ClientOptions | None = None) -> None:
        self._options = options or ClientOptions()
        self._http = httpx.Client(base_url=base_url, timeout=self._options.timeout_s, headers=self._options.headers())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def runs(self) -> list[Json]:
        """The runs that the key may ask."""
        return list(self._json(get("/v1/runs"))["runs"])

    def run(self, run_id: str) -> Json:
        """One run with its attempts."""
        return self._json(get(f"/v1/runs/{run_id}"))

    def gaps(self, run_id: str) -> Found:
        """What a run misses."""
        return Found(self._json(get(f"/v1/runs/{run_id}/gaps")))

    def trace(self, text: str | None = None, **arguments: Unpack[TraceArguments]) -> Traced:
        """Trace a text, token ids or chat messages."""
        return Traced(self._json(post("/v1/trace", trace_body(text, arguments))))

    def count(self, ngram: str | Sequence[int], **arguments: Unpack[SelectionArguments]) -> int:
        """How often an n-gram (text, or token ids) occurs."""
        return int(self._json(post("/v1/count", ngram_body(ngram, arguments)))["count"])

    def hits(
        self, ngram: str | Sequence[int], *, context_tokens: int = 24, **arguments: Unpack[SelectionArguments]
    ) -> "Rows":
        """Every place of an n-gram."""
        return Rows(self, hits_request(ngram, context_tokens, arguments))

    def search(self, query: str, **arguments: Unpack[SearchArguments]) -> "Rows":
        """The segments that match a query; `page()` has their count and facets."""
        return Rows(self, search_request(query, arguments))

    def steps(self, **arguments: Unpack[StepsArguments]) -> "Rows":
        """Steps with their metrics and spikes."""
        return Rows(self, steps_request(arguments))

    def explain(self, global_step: int, **arguments: Unpack[ExplainArguments]) -> Found:
        """What distinguishes the sequences of a step from those before it."""
        return Found(self._json(explain_request(global_step, arguments)))

    def document(self, source: str, document_id: str, **arguments: Unpack[DocumentArguments]) -> "Rows":
        """Every exposure of a document; `page()` has what training saw of it in all."""
        return Rows(self, document_request(source, document_id, arguments))

    def sql(self, sql: str, run: str | None = None) -> Table:
        """Rows of one SELECT over the catalog, where the server answers SQL."""
        response = self._sent(sql_request(sql, run))
        return Table(read_arrow(response), truncated=response.headers.get("kiseki-truncated") == "true")

    def sequence(self, address: str, *, tokens: bool = False) -> Found:
        """One packed sequence; tokens: with each token's text and the loss mask."""
        return Found(self._json(get(sequence_path(address, tokens=tokens))))

    def sequences(self, addresses: Sequence[str]) -> Table:
        """Packed sequences of one run, in the order of their addresses, without those that the index does not hold."""
        tables = []
        for start in range(0, len(addresses), SEQUENCES_AT_ONCE):
            body = {"addresses": list(addresses[start : start + SEQUENCES_AT_ONCE])}
            tables.append(read_arrow(self._sent(post("/v1/sequences:batchGet", body).page(None, ARROW))))
        return Table(concat_tables(tables))

    def trace_batch(self, items: Sequence[Mapping[str, Any]], run: str | None = None) -> Iterator[Json]:
        """Trace several, each yielded as it is done: its `index`, and its `trace` or `problem`. Few; more are a job."""
        request = Request(
            method="POST",
            path="/v1/trace:batch",
            body={"items": list(items), "run": run},
            accept="application/x-ndjson",
        )
        with closing(self._streamed(request)) as response:
            for line in response.iter_lines():
                yield json.loads(line)

    def job(self, items: Sequence[Mapping[str, Any]], run: str | None = None) -> "Job":
        """Start a job of many traces."""
        body = {"items": list(items), "run": run}
        return Job(self, self._json(Request(method="POST", path="/v1/jobs", body=body, is_question=False))["job"])

    def _json(self, request: Request) -> Json:
        return dict(self._sent(request).json())

    def _sent(self, request: Request) -> httpx.Response:
        return request.check(self._retried(request, stream=False))

    def _streamed(self, request: Request) -> httpx.Response:
        response = self._retried(request, stream=True)
        if not response.is_success:
            response.read()
        return request.check(response)

    def _retried(self, request: Request, *, stream: bool) -> httpx.Response:
        tries = 0
        while True:
            tries += 1
            response, lost = None, None
            try:
                response = self._http.send(request.build(self._http), stream=stream)
                if response.is_success:
                    return response
            except httpx.TransportError as error:
                lost = error
            wait_s = self._options.wait_s(tries, response, is_question=request.is_question)
            if wait_s is None and response is not None:
                return response
            if wait_s is None:
                raise ApiError(0, "", f"the server does not answer: {lost}", "") from lost
            time.sleep(wait_s)


class Rows:
    """Rows of a question; nothing is asked before they are needed. Iterate over them, or take all as a table."""

    def __init__(self, client: Client, request: Request) -> None:
        self._client, self._request = client, request

    def page(self, cursor: str | None = None) -> Found:
        """The first page, or the one at `next_cursor` of another, with all that the answer says of itself."""
        return Found(self._client._json(self._request.page(cursor)))

    def pages(self) -> Iterator["pa.Table"]:
        """Page after page, all of one generation."""
        cursor = None
        while True:
            response = self._client._sent(self._request.page(cursor, ARROW))
            yield read_arrow(response)
            cursor = response.headers.get("kiseki-next-cursor")
            if cursor is None:
                return

    def __iter__(self) -> Iterator[Json]:
        for page in self.pages():
            yield from page.to_pylist()

    def to_arrow(self) -> "pa.Table":
        """All of them."""
        return concat_tables(list(self.pages()))

    def to_pandas(self) -> Any:
        """All of them as a data frame. Raises InputError without pandas."""
        return Table(self.to_arrow()).to_pandas()


class Job:
    """A job on the server."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self.name = client, name

    def state(self) -> Json:
        """How far it is."""
        return self._client._json(get(f"/v1/jobs/{self.name}"))

    def wait(self, progress: Callable[[int, int], None] | None = None, *, interval_s: float = 0.5) -> Json:
        """Its state once it is over; `progress` takes (done, in all)."""
        while True:
            state = self.state()
            if progress is not None:
                progress(state["num_done"], state["num_items"])
            if state["expires_unix_s"] is not None:
                return state
            time.sleep(interval_s)

    def results(self) -> Iterator[Json]:
        """What is done of it: each `index`, and its `trace` or `problem`."""
        request = Request(method="GET", path=f"/v1/jobs/{self.name}/results", accept="application/x-ndjson")
        with closing(self._client._streamed(request)) as response:
            for line in response.iter_lines():
                yield json.loads(line)

    def cancel(self) -> None:
        """Stop it, and forget its results."""
        self._client._json(Request(method="DELETE", path=f"/v1/jobs/{self.name}"))
