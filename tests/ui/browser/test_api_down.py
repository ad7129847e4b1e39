"""Pages whose API is not there say so in words, with the way out."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, expect

from search_api import Settings
from tests.search_api.live_server import live_server
from tests.ui.browser.conftest import Served, wait_for

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


def test_a_server_without_sql_says_how_it_is_turned_on(browser: Browser, served: Served) -> None:
    context = browser.new_context()
    page = context.new_page()
    with live_server(Settings(run_dirs=(served.run.run_dir,))) as api_url, pages_of(api_url) as url:
        page.goto(url + "/sql?canned=loss")
        expect(page.locator(".msg.warning")).to_contain_text("`kiseki serve RUN --sql`", timeout=30_000)
        page.goto(url + "/steps")
        expect(page.locator("svg .line").first).to_be_visible(timeout=30_000)
    context.close()
