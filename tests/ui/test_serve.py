"""`kiseki serve` as a real process: pages and API on one port, and a clean stop."""

import re
import signal
import socket
import subprocess
import time

import httpx

from search_api.client import Client
from tests.conftest import TextRun
from tests.ui.test_cli import PROGRAM
from ui.serve import _listen


def test_pages_and_api_in_one_process(text_run: TextRun) -> None:
    command = [str(PROGRAM), "serve", str(text_run.run_dir), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
            assert url is not None
            _wait(url[0])
            with Client(url[0]) as client:
                assert client.runs()[0]["run_id"] == "text"
                found = client.trace(next(iter(text_run.documents.values()))[:150])
                assert found["spans"][0]["count"] == 2
                assert len(client.sequence(found["spans"][0]["hits"][0]["address"])["token_ids"]) == 64
            page = httpx.get(url[0] + "/")
            assert page.status_code == 200 and "<title>Streamlit</title>" in page.text
            assert httpx.get(url[0] + "/docs").status_code == 200
        finally:
            server.send_signal(signal.SIGINT)
            _, err = server.communicate(timeout=30)
    assert "Traceback" not in err


def _wait(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if httpx.get(url + "/healthz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server did not answer in 30 s")


def test_answers_are_not_held_back_by_the_system() -> None:
    """asyncio turns Nagle's algorithm off for sockets that say they are TCP; else each answer waits 40 ms."""
    listener = _listen("127.0.0.1", 0)
    client = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    assert accepted.proto == socket.IPPROTO_TCP
    for each in (accepted, client, listener):
        each.close()
