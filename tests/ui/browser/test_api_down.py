"""Pages whose API is not there, or does less, say so in words, with the way out; and of a run that was not observed."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from indexer.build.update import update_index
from indexer.importers.olmo_core.reconstruct import reconstruct_olmo_core
from search_api import Settings
from tests.indexer.importers.olmo_core.test_reconstruct import FILES, ORDER
from tests.support.live_server import live_server
from tests.ui.browser.conftest import Served, wait_for
from ui.html.texts import JAPANESE

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


@pytest.fixture(scope="module")
def two_runs(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The pages of a server without SQL, of the run of all tests and of one that nobody observed."""
    recomputed = tmp_path_factory.mktemp("recomputed") / "run"
    reconstruct_olmo_core(FILES / "config.json", recomputed, ORDER[:1], data_dir=FILES, corpus="/data", run_id="again")
    update_index(recomputed)
    with live_server(Settings(run_dirs=(served.run.run_dir, recomputed))) as api_url, pages_of(api_url) as url:
        yield url


def test_a_server_without_sql_says_how_it_is_turned_on(browser: Browser, two_runs: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(two_runs + "/sql?canned=loss&run=pages")
    expect(page.locator(".msg.warning")).to_contain_text("`kiseki serve RUN --sql`", timeout=30_000)
    page.goto(two_runs + "/steps?run=pages")
    expect(page.locator("svg .line").first).to_be_visible(timeout=30_000)
    expect(page.locator(".origin")).to_have_count(0)
    context.close()


def test_every_page_says_that_a_run_was_not_observed(browser: Browser, two_runs: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    for name in ("trace", "steps", "sql", "runs"):
        page.goto(f"{two_runs}/{name}?run=again")
        line = page.locator(".origin")
        expect(line).to_have_text(
            "Recomputed from OLMo-core's global_indices and configuration, not observed: nobody saw training consume these "
            "sequences.",
            timeout=30_000,
        )
    page.get_by_role("link", name="日本語").click()
    expect(line).to_have_text(
        JAPANESE["Recomputed from {what}, not observed: nobody saw training consume these sequences."].format(
            what="OLMo-core's global_indices and configuration"
        )
    )
    page.goto(f"{two_runs}/runs?run=pages")
    expect(page.get_by_role("status")).to_contain_text("Complete", timeout=30_000)
    expect(line).to_have_count(0)
    context.close()
