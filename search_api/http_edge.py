"""What happens to every request before and after its route, as plain ASGI.

1. Each request has an id: the client's `X-Request-ID` where it is a short word, else a new one; the answer, the log line and
   every problem carry it.
2. HEAD is GET without the body. A body has arrived whole, in time, within its limit, as JSON, before a route sees it.
3. One JSON line a request goes to the log; nothing of a body or of a key does.
4. Whatever was not meant to be raised becomes the problem `failed`, with its traceback in the log.
"""

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from search_api.metrics import Metrics
from search_api.problems import Problem, problem_response
from search_api.settings import Limits

__all__ = ["HttpEdge"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_log = logging.getLogger("kiseki.server")
_requests = logging.getLogger("kiseki.requests")


class HttpEdge:
    """The outermost layer around the routes."""

    def __init__(self, app: AsgiApp, *, limits: Limits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        self._metrics.in_flight.inc()
        try:
            await self._answer(exchange, scope, receive)
        except _ClientGoneError:
            exchange.status = None
        finally:
            self._metrics.in_flight.dec()
            self._finish(exchange, scope)

    async def _answer(self, exchange: "_Exchange", scope: Scope, receive: Receive) -> None:
        inner = dict(scope)
        scope["state"] = inner["state"] = {**scope.get("state", {}), "request_id": exchange.request_id}
        if scope["method"] == "HEAD":
            inner["method"] = "GET"
        try:
            if scope["method"] in ("POST", "PUT", "PATCH"):
                receive = await self._whole_body(exchange.headers, receive)
            await self._app(inner, receive, exchange.send)
        except _ClientGoneError:
            raise
        except Problem as problem:
            await problem_response(problem)(scope, receive, exchange.send)
        except Exception:  # noqa: BLE001 – the edge of the server: nothing above would answer
            _log.exception("request %s failed", exchange.request_id)
            if exchange.status is None:
                failed = Problem("failed", f"tell the operator the request id {exchange.request_id}")
                await problem_response(failed)(scope, receive, exchange.send)
        finally:
            exchange.route = getattr(inner.get("route"), "path", "")

    async def _whole_body(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Read the body, and hand it on as one message. Raises Problem."""
        self._check_headers(headers)
        try:
            async with asyncio.timeout(self._limits.body_timeout_s):
                body = await self._read(receive)
        except TimeoutError as error:
            raise Problem("body-timeout", f"expected the body within {self._limits.body_timeout_s:g} s") from error
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again

    def _check_headers(self, headers: dict[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > self._limits.body_bytes:
            raise self._too_large()
        media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if length == b"0" and not media_type:
            return
        if media_type != b"application/json" or headers.get(b"content-encoding", b"identity").lower() != b"identity":
            found = media_type.decode("latin-1")[:100] or "none"
            raise Problem(
                "media-type", f"expected Content-Type application/json and no Content-Encoding, found {found}"
            )

    async def _read(self, receive: Receive) -> bytes:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientGoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limits.body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> Problem:
        return Problem(
            "body-too-large", f"expected a body of at most {self._limits.body_bytes} bytes; send it in parts"
        )

    def _finish(self, exchange: "_Exchange", scope: Scope) -> None:
        seconds, status = time.perf_counter() - exchange.started, exchange.status or 499
        self._metrics.observe(scope["method"], exchange.route or "(none)", status, seconds)
        if not _requests.isEnabledFor(logging.INFO):
            return
        line = {
            "unix_time_s": round(time.time(), 3), "request_id": exchange.request_id, "method": scope["method"],
            "path": scope["path"][:500], "route": exchange.route, "status": status, "num_bytes": exchange.num_bytes,
            "took_ms": round(seconds * 1e3, 3), "client": (scope.get("client") or ["?"])[0],
            "key": scope["state"].get("key"),
        }  # fmt: skip
        _requests.info(json.dumps(line, ensure_ascii=True))


class _ClientGoneError(Exception):
    """The client left: nobody is there to be answered."""


class _Exchange:
    """One request and its answer: what is seen of them on the way out."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        self.started = time.perf_counter()
        self.status: int | None = None
        self.num_bytes, self.route = 0, ""
        self._head, self._send = scope["method"] == "HEAD", send

    async def send(self, message: Message) -> None:
        """Add our headers; leave the body of a HEAD out."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [(b"x-request-id", self.request_id.encode()), *_SECURITY]
            message = {**message, "headers": [*message.get("headers", []), *own]}
        elif message["type"] == "http.response.body":
            self.num_bytes += len(message.get("body", b""))
            if self._head:
                message = {**message, "body": b""}
        try:
            await self._send(message)
        except Exception as error:  # whatever it is that the server raises where nobody is there any more
            raise _ClientGoneError from error
