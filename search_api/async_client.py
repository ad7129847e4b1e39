"""The Python client of the API for programs that run on asyncio; `search_api.client` has the words."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import httpx
import pyarrow as pa

from search_api.client_answers import ApiError, Found, Json, Table, Traced
from search_api.client_requests import (
    ARROW,
    HITS_AT_ONCE,
    SEQUENCES_AT_ONCE,
    ClientOptions,
    Request,
    SelectionArguments,
    TraceArguments,
    get,
    ngram_body,
    sequence_path,
    trace_body,
)

__all__ = ["AsyncClient"]


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
        return Traced(await self._json(Request(method="POST", path="/v1/trace", body=trace_body(text, arguments))))

    async def count(self, ngram: str | Sequence[int], **arguments: Unpack[SelectionArguments]) -> int:
        """How often an n-gram (text, or token ids) occurs."""
        body = ngram_body(ngram, arguments)
        return int((await self._json(Request(method="POST", path="/v1/count", body=body)))["count"])

    async def hits(
        self, ngram: str | Sequence[int], *, context_tokens: int = 24, **arguments: Unpack[SelectionArguments]
    ) -> AsyncIterator[Json]:
        """Every place of an n-gram; pages are fetched as they are needed."""
        whole = {**ngram_body(ngram, arguments), "context_tokens": context_tokens, "limit": HITS_AT_ONCE}
        body = whole
        while True:
            table, cursor = await self._table("/v1/hits", body)
            for row in table.to_pylist():
                yield row
            if cursor is None:
                return
            body = {**whole, "cursor": cursor}

    async def sequence(self, address: str, *, tokens: bool = False) -> Found:
        """One packed sequence; tokens: with each token's text and the loss mask."""
        return Found(await self._json(get(sequence_path(address, tokens=tokens))))

    async def sequences(self, addresses: Sequence[str]) -> Table:
        """Packed sequences of one run, in the order of their addresses, without those that the index does not hold."""
        tables = []
        for start in range(0, len(addresses), SEQUENCES_AT_ONCE):
            body = {"addresses": list(addresses[start : start + SEQUENCES_AT_ONCE])}
            tables.append((await self._table("/v1/sequences:batchGet", body))[0])
        return Table(pa.concat_tables(tables) if tables else pa.table({}))

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
        return dict(request.check(await self._retried(request, stream=False)).json())

    async def _table(self, path: str, body: Json) -> tuple[pa.Table, str | None]:
        request = Request(method="POST", path=path, body=body, accept=ARROW)
        response = request.check(await self._retried(request, stream=False))
        return pa.ipc.open_stream(response.content).read_all(), response.headers.get("kiseki-next-cursor")

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
