"""A real `kiseki serve` process and a real headless Chromium, started once for all browser tests."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
from playwright.sync_api import Browser, Dialog, Page, expect, sync_playwright

from tests.support.pages_run import PagesRun, make_pages_run
from tests.ui.test_cli import PROGRAM

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT_MS = 30_000
expect.set_options(timeout=WAIT_MS)  # the machine of the tests may be busy


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """Where the pages are, and the run that they show."""

    url: str
    run: PagesRun


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server of its own process."""
    run = make_pages_run(tmp_path_factory.mktemp("pages"))
    command = [str(PROGRAM), "serve", str(run.run_dir), "--port", "0", "--sql"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
            assert url is not None
            wait_for(url[0])
            yield Served(url=url[0], run=run)
        finally:
            server.send_signal(signal.SIGINT)
            _, err = server.communicate(timeout=30)
    assert "Traceback" not in err, err


def wait_for(url: str) -> None:
    """Until the server answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(url + "/healthz").status_code < 500:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise AssertionError("the server did not answer in 60 s")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """The system's Chromium; without one the browser tests are skipped, which pytest says at its end."""
    if CHROMIUM is None:
        pytest.skip(
            "NO BROWSER: no chromium and no google-chrome on PATH, so the pages are not tested; see `make browser`"
        )
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """A page in a context of its own. Whatever goes wrong in the browser fails the test."""
    context = browser.new_context(
        base_url=served.url, viewport={"width": 1360, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    context.set_default_timeout(WAIT_MS)
    page, problems = context.new_page(), list[str]()
    page.on("pageerror", lambda error: problems.append(f"error: {error}"))
    page.on("dialog", lambda dialog: note_dialog(dialog, problems))
    page.on("request", lambda request: note_request(request.url, served.url, problems))
    yield page
    context.close()
    assert problems == []


def note_dialog(dialog: Dialog, problems: list[str]) -> None:
    """Nothing on the pages opens a dialog."""
    problems.append(f"dialog: {dialog.message}")
    dialog.dismiss()


def note_request(url: str, base_url: str, problems: list[str]) -> None:
    """Pages fetch nothing from elsewhere, and nothing that corpus text names."""
    if (
        not url.startswith((base_url, base_url.replace("http", "ws"), "data:", "blob:"))
        or "pwned" in url.partition("?")[0]
    ):
        problems.append(f"request: {url[:200]}")
