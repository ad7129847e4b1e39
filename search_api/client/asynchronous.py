"""The Python client of the API for programs that run on asyncio; `search_api.client` has the words."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import httpx

from search_api.client.answers import ApiError, Found, Json, Table, Traced, concat_tables, read_arrow
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

__all__ = ["AsyncClient", "AsyncRows"]


class AsyncClient:
    """One server. Use it with `async with`, or await `close`."""

    def __init__(self, base_url: str, options: ClientOptions | None = None) -> None:
        self._options = options or ClientOptions()
        self._http = httpx.AsyncClient(
            base_url=base_url, timeout=self._options.timeout_s, headers=self._options.headers()
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    async def runs(self) -> list[Json]:
        """The runs that the key may ask."""
        return list((await self._json(get("/v1/runs")))["runs"])

    async def run(self, run_id: str) -> Json:
        """One run with its attempts."""
        return await self._json(get(f"/v1/runs/{run_id}"))

    async def gaps(self, run_id: str) -> Found:
        """What a run misses."""
        return Found(await self._json(get(f"/v1/runs/{run_id}/gaps")))

    async def trace(self, text: str | None = None, **arguments: Unpack[TraceArguments]) -> Traced:
        """Trace a text, token ids or chat messages."""
        return Traced(await self._json(post("/v1/trace", trace_body(text, arguments))))

    async def count(self, ngram: str | Sequence[int], **arguments: Unpack[SelectionArguments]) -> int:
        """How often an n-gram (text, or token ids) occurs."""
        return int((await self._json(post("/v1/count", ngram_body(ngram, arguments))))["count"])

    def hits(
        self, ngram: str | Sequence[int], *, context_tokens: int = 24, **arguments: Unpack[SelectionArguments]
    ) -> "AsyncRows":
        """Every place of an n-gram."""
        return AsyncRows(self, hits_request(ngram, context_tokens, arguments))

    def search(self, query: str, **arguments: Unpack[SearchArguments]) -> "AsyncRows":
        """The segments that match a query; `page()` has their count and facets."""
        return AsyncRows(self, search_request(query, arguments))

    def steps(self, **arguments: Unpack[StepsArguments]) -> "AsyncRows":
        """Steps with their metrics and spikes."""
        return AsyncRows(self, steps_request(arguments))

    async def explain(self, global_step: int, **arguments: Unpack[ExplainArguments]) -> Found:
        """What distinguishes the sequences of a step from those before it."""
        return Found(await self._json(explain_request(global_step, arguments)))

    def document(self, source: str, document_id: str, **arguments: Unpack[DocumentArguments]) -> "AsyncRows":
        """Every exposure of a document; `page()` has what training saw of it in all."""
        return AsyncRows(self, document_request(source, document_id, arguments))

    async def sql(self, sql: str, run: str | None = None) -> Table:
        """Rows of one SELECT over the catalog, where the server answers SQL."""
        response = await self._sent(sql_request(sql, run))
        return Table(read_arrow(response), truncated=response.headers.get("kiseki-truncated") == "true")

    async def sequence(self, address: str, *, tokens: bool = False) -> Found:
        """One packed sequence; tokens: with each token's text and the loss mask."""
        return Found(await self._json(get(sequence_path(address, tokens=tokens))))

    async def sequences(self, addresses: Sequence[str]) -> Table:
        """Packed sequences of one run, in the order of their addresses, without those that the index does not hold."""
        tables = []
        for start in range(0, len(addresses), SEQUENCES_AT_ONCE):
            body = {"addresses": list(addresses[start : start + SEQUENCES_AT_ONCE])}
            tables.append(read_arrow(await self._sent(post("/v1/sequences:batchGet", body).page(None, ARROW))))
        return Table(concat_tables(tables))

    async def trace_batch(self, items: Sequence[Mapping[str, Any]], run: str | None = None) -> AsyncIterator[Json]:
        """Trace several, each yielded as it is done: its `index`, and its `trace` or `problem`."""
        request = Request(
            method="POST",
            path="/v1/trace:batch",
            body={"items": list(items), "run": run},
            accept="application/x-ndjson",
        )
        response = await self._retried(request, stream=True)
        try:
            if not response.is_success:
                await response.aread()
            async for line in request.check(response).aiter_lines():
                yield json.loads(line)
        finally:
            await response.aclose()

    async def _json(self, request: Request) -> Json:
        return dict((await self._sent(request)).json())

    async def _sent(self, request: Request) -> httpx.Response:
        return request.check(await self._retried(request, stream=False))

    async def _retried(self, request: Request, *, stream: bool) -> httpx.Response:
        tries = 0
        while True:
            tries += 1
            response, lost = None, None
            try:
                response = await self._http.send(request.build(self._http), stream=stream)
                if response.is_success:
                    return response
            except httpx.TransportError as error:
                lost = error
            wait_s = self._options.wait_s(tries, response, is_question=request.is_question)
            if wait_s is None and response is not None:
                return response
            if wait_s is None:
                raise ApiError(0, "", f"the server does not answer: {lost}", "") from lost
            await asyncio.sleep(wait_s)


class AsyncRows:
    """Rows of a question; nothing is asked before they are needed. Iterate with `async for`, or take all as a table."""

    def __init__(self, client: AsyncClient, request: Request) -> None:
        self._client, self._request = client, request

    async def page(self, cursor: str | None = None) -> Found:
        """The first page, or the one at `next_cursor` of another, with all that the answer says of itself."""
        return Found(await self._client._json(self._request.page(cursor)))

    async def pages(self) -> AsyncIterator["pa.Table"]:
        """Page after page, all of one generation."""
        cursor = None
        while True:
            response = await self._client._sent(self._request.page(cursor, ARROW))
            yield read_arrow(response)
            cursor = response.headers.get("kiseki-next-cursor")
            if cursor is None:
                return

    async def __aiter__(self) -> AsyncIterator[Json]:
        async for page in self.pages():
            for row in page.to_pylist():
                yield row

    async def to_arrow(self) -> "pa.Table":
        """All of them."""
        return concat_tables([page async for page in self.pages()])
