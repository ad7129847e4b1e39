"""Pages whose API is not there say so in words, with the way out."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.ui.browser.conftest import wait_for

MAIN = Path(__file__).parents[3] / "ui" / "pages" / "main.py"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def pages_of(api_url: str) -> Iterator[str]:
    """The pages alone, as a process of their own."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        str(MAIN),
        "--server.port",
        str(port),
        "--server.headless",
        "true",
    ]
    command += ["--server.address", "127.0.0.1"]
    environment = {**os.environ, "KISEKI_API_URL": api_url, "PYTHONPATH": str(MAIN.parents[2])}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=30)


def test_an_api_that_is_down(browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and never listens: connections are refused
        with pages_of(f"http://127.0.0.1:{nobody.getsockname()[1]}") as url:
            for path in ("/?text=a", "/runs"):
                page.goto(url + path)
                alert = page.get_by_role("alert")
                expect(alert).to_contain_text("The API does not answer.", timeout=30_000)
                expect(alert).to_contain_text("`kiseki serve` is still running")
    context.close()
