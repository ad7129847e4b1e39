"""Hostile requests to `kiseki serve` as a real process: each gets a 4xx or an answer in time, and the server lives on.

What is not HTTP goes over a socket as it is. Time is bounded by the deadline + 0.5 s, memory by 512 MB more than before.
"""

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import TextRun
from tests.ui.test_cli import PROGRAM

pytestmark = pytest.mark.alone

DEADLINE_S, SLACK_S = 2.0, 0.5
JSON_TYPE = {"Content-Type": "application/json"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """A running server: where, and its process id."""

    host: str
    port: int
    pid: int

    def memory_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) << 10  # type: ignore[index]


@pytest.fixture(scope="module")
def server(text_run: TextRun) -> Iterator[Server]:
    command = [str(PROGRAM), "serve", str(text_run.run_dir), "--port", "0", "--api-only", "--limit", "body_timeout_s=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())[1])  # type: ignore[index]
            deadline = time.monotonic() + 60
            while True:
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    assert time.monotonic() < deadline and process.poll() is None
                    time.sleep(0.05)
            yield Server(host="127.0.0.1", port=port, pid=process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
    assert "Traceback" not in err, err[-3000:]


def bodies() -> Iterator[tuple[str, str, bytes]]:
    """(name, path, body) of requests that are HTTP."""

    def of(name: str, path: str, body: Any) -> tuple[str, str, bytes]:
        return name, f"/v1/{path}", body if isinstance(body, bytes) else json.dumps(body).encode()

    word, most = "the ", 200_000
    yield of("text of the largest size", "trace", {"text": word * (most // 4), "min_length": 1})
    yield of("text of one word", "trace", {"text": "a" * most})
    yield of("text of no words", "trace", {"text": "\n.-" * (most // 3), "min_length": 1})
    yield of("CJK of the largest size", "trace", {"text": "渚のやつ" * (most // 4), "min_length": 1})
    yield of("emoji with joiners", "trace", {"text": "👩‍👩‍👧‍👦" * 5000})
    yield of("combining characters", "trace", {"text": "e" + "\u0301" * 100_000})
    everything = {"min_length": 1, "max_spans": 10_000, "num_hits": 100, "context_tokens": 512}
    yield of("everything listed", "trace", {"text": word * 5000, **everything})
    yield of("token ids of the largest number", "trace", {"token_ids": list(range(1, 2000)) * 25, **everything})
    yield of("too many token ids", "trace", {"token_ids": [1] * 50_001})
    yield of("too long a text", "trace", {"text": "a" * 200_001})
    yield of("huge token ids", "trace", {"token_ids": [2**53]})
    yield of("token ids beyond 64 bits", "count", {"token_ids": [2**63, 2**64, 10**40]})
    yield of("negative token ids", "count", {"token_ids": [-1]})
    yield of("a number of 5,000 digits", "count", b'{"token_ids": [' + b"9" * 5000 + b"]}")
    yield of("infinite numbers", "count", b'{"text": "a", "before_step": 1e400}')
    yield of("NaN", "trace", b'{"text": "a", "min_length": NaN}')
    yield of("fractions", "count", {"text": "a", "before_step": 1.5})
    yield of("true as a number", "trace", {"token_ids": [True, False]})
    yield of("nested lists", "trace", b'{"token_ids": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")
    yield of("nested objects", "trace", b'{"text":' * 50_000 + b"1" + b"}" * 50_000)
    yield of("half a surrogate", "trace", b'{"text": "\\ud800 the best of the \\udfff"}')
    yield of("half a surrogate as a name", "count", b'{"text": "a", "run": "\\ud800"}')
    yield of("half a surrogate as a source", "count", b'{"text": "a", "source": "\\ud800"}')
    yield of("half a surrogate as an address", "sequences:batchGet", b'{"addresses": ["\\ud800"]}')
    yield of("zero bytes", "trace", {"text": "\0" * 1000 + "the"})
    yield of("zero bytes in a source", "count", {"text": "a", "source": "a\0b"})
    yield of("SQL in a source", "count", {"text": "a", "source": "'; DROP TABLE runs; --"})
    yield of("a path as a run", "count", {"text": "a", "run": "../../../etc/passwd"})
    yield of("escape codes as a run", "count", {"text": "a", "run": "\x1b[2J\r\nX-Injected: 1"})
    yield of("many messages", "trace", {"messages": [{"content": "the " * 40}] * 1000})
    yield of("too many messages", "trace", {"messages": [{"content": ""}] * 1001})
    yield of("messages of the largest size", "trace", {"messages": [{"role": "x" * 100, "content": "a" * most}] * 4})
    yield of("the same key twice", "count", b'{"text": "a", "text": "b", "text": 3}')
    yield of("a hundred thousand keys", "count", json.dumps({f"k{number}": 1 for number in range(60_000)}).encode())
    yield of("hits without end", "hits", {"text": "e", "limit": 1000, "context_tokens": 512, "lineage": "all"})
    yield of("a negative limit", "hits", {"text": "e", "limit": -1})
    yield of("a huge limit", "hits", {"text": "e", "limit": 10**9})
    yield of("a cursor of zeros", "hits", {"text": "e", "cursor": "A" * 2000})
    pickled = "gASVKAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAJpZJSFlFKULg=="
    yield of("a cursor of another world", "hits", {"text": "e", "cursor": pickled})
    yield of("every address", "sequences:batchGet", {"addresses": ["text/a1/s1/r0/m0/q0"] * 100})
    yield of("too many addresses", "sequences:batchGet", {"addresses": ["text/a1/s1/r0/m0/q0"] * 101})
    yield of(
        "addresses of huge numbers", "sequences:batchGet", {"addresses": ["text/a999999999/s999999999999999/r9/m9/q9"]}
    )
    yield of("addresses in other digits", "sequences:batchGet", {"addresses": ["text/a１/s١/r0/m0/q0"]})
    yield of("a batch of the largest texts", "trace:batch", {"items": [{"text": word * 6000, "min_length": 1}] * 2})
    yield of("a job of nothing", "jobs", {"items": [{}] * 1000})
    yield of("a job of too much", "jobs", {"items": [{}] * 1001})
    yield of("not an object", "trace", [])
    yield of("an empty body", "trace", b"")
    yield of("UTF-16", "trace", '{"text": "a"}'.encode("utf-16"))
    yield of("bytes that are no text", "trace", bytes(range(256)) * 100)
    yield of("two megabytes", "trace", b" " * (2 << 20))


HEADERS: list[tuple[str, str, str, dict[str, str]]] = [
    ("an Accept of ten thousand", "GET", "/v1/runs", {"Accept": ",".join(["a/b;q=0.1"] * 5000)}),
    ("tags without end", "GET", "/v1/sequences/text/a1/s1/r0/m0/q0", {"If-None-Match": '"x",' * 10_000}),
    ("a key of sixty thousand characters", "GET", "/v1/runs", {"Authorization": "Bearer " + "x" * 50_000}),
    ("an id that breaks lines", "GET", "/v1/runs", {"X-Request-ID": "a%0d%0aSet-Cookie: x"}),
    ("a range", "GET", "/v1/runs", {"Range": "bytes=0-0,0-0,0-0"}),
    ("another host", "GET", "/v1/runs", {"Host": "evil.example.org"}),
    ("a way around", "GET", "/v1/runs", {"X-Original-URL": "/admin", "X-HTTP-Method-Override": "DELETE"}),
    ("a forwarded address", "GET", "/v1/runs", {"X-Forwarded-For": "x" * 1000, "Forwarded": "for=\x22"}),
    ("a websocket", "GET", "/v1/runs", {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x"}),
    ("compressed", "POST", "/v1/trace", {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
    ("a form", "POST", "/v1/trace", {"Content-Type": "multipart/form-data; boundary=x"}),
    ("charset of nowhere", "POST", "/v1/trace", {"Content-Type": "application/json; charset=utf-7"}),
    ("a path above", "GET", "/v1/sequences/../../../../etc/passwd", {}),
    ("a path above, encoded", "GET", "/v1/sequences/%2e%2e%2f%2e%2e%2fetc%2fpasswd", {}),
    ("a zero byte", "GET", "/v1/runs/%00", {}),
    ("bytes that are no UTF-8", "GET", "/v1/runs/%ff%fe", {}),
    ("a long path", "GET", "/v1/sequences/" + "a/" * 10_000, {}),
    ("a long question", "GET", "/v1/runs?" + "a=b&" * 10_000, {}),
    ("slashes", "GET", "//////v1//runs", {}),
    ("deleting a run", "DELETE", "/v1/runs/text", {}),
    ("the trace method", "TRACE", "/v1/runs", {}),
]

POST = b"POST /v1/count HTTP/1.1\r\nHost: x\r\n"
AS_JSON = b"Content-Type: application/json\r\n"
RAW: list[tuple[str, bytes]] = [
    ("no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    ("half a request", b"GET /v1/runs HTTP/1.1\r\nHost: x\r\n"),
    ("two lengths", POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"),
    ("length and chunks", POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a negative length", POST + b"Content-Length: -1\r\n\r\n"),
    ("a length of many digits", POST + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n"),
    ("chunks of nonsense", POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nxx\r\n"),
    ("a body that does not come", POST + AS_JSON + b"Content-Length: 50\r\n\r\n{"),
    ("ten thousand headers", b"GET /v1/runs HTTP/1.1\r\n" + b"X: y\r\n" * 10_000 + b"\r\n"),
    ("an endless header", b"GET /v1/runs HTTP/1.1\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n"),
    ("bare line feeds", b"GET /v1/runs HTTP/1.1\nHost: x\nX: a\x00b\n\n"),
]


def test_each_is_answered_in_time_and_the_server_lives(server: Server) -> None:
    base = f"http://{server.host}:{server.port}"
    before, slow, statuses = server.memory_bytes(), [], []
    num = 0
    with httpx.Client(base_url=base, timeout=60) as client:
        for name, path, body in bodies():
            began = time.perf_counter()
            with client.stream("POST", path, content=body, headers=JSON_TYPE) as response:
                first_s = time.perf_counter() - began
                response.read()
            num += 1
            statuses.append((name, response.status_code))
            limit_s = DEADLINE_S + SLACK_S
            if first_s > limit_s or (path != "/v1/trace:batch" and time.perf_counter() - began > limit_s):
                slow.append((name, round(time.perf_counter() - began, 2)))
            if path == "/v1/jobs" and response.status_code == 202:
                client.delete(f"/v1/jobs/{response.json()['job']}")
        for name, method, path, headers in HEADERS:
            began = time.perf_counter()
            try:
                statuses.append((name, client.request(method, base + path, headers=headers).status_code))
            except httpx.HTTPError as error:  # the server hung up
                statuses.append((f"{name}: {error!r}", 0))
            num += 1
            if time.perf_counter() - began > DEADLINE_S + SLACK_S:
                slow.append((name, time.perf_counter() - began))
    for name, data in RAW:
        num += 1
        status = raw(server, data)
        statuses.append((name, status))
    print(statuses)
    assert num >= 60 and not slow, slow
    assert [(name, status) for name, status in statuses if status >= 500 and status != 504] == []
    assert httpx.get(f"{base}/readyz").status_code == 200
    assert httpx.post(f"{base}/v1/count", json={"text": "the"}, timeout=10).json()["count"] > 0
    assert server.memory_bytes() - before < 512 << 20


def raw(server: Server, data: bytes) -> int:
    """Status of the answer to bytes; 0 where the server hangs up, or waits for more."""
    with socket.create_connection((server.host, server.port), timeout=1.5) as connection:
        try:
            connection.sendall(data)
            answer = connection.recv(4096)
        except (TimeoutError, ConnectionError):
            return 0
    match = re.match(rb"HTTP/1\.1 (\d{3})", answer)
    return int(match[1]) if match else 0


def test_many_slow_clients_keep_nobody_out(server: Server) -> None:
    head = b"POST /v1/count HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
    connections = [socket.create_connection((server.host, server.port), timeout=5) for _ in range(200)]
    try:
        for connection in connections:
            connection.sendall(head)
        began = time.perf_counter()
        response = httpx.post(f"http://{server.host}:{server.port}/v1/count", json={"text": "the"}, timeout=10)
        assert response.status_code == 200 and time.perf_counter() - began < 2
        answers = [connection.recv(100) for connection in connections]
        assert all(answer.startswith(b"HTTP/1.1 408") for answer in answers)
    finally:
        for connection in connections:
            connection.close()
