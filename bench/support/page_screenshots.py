"""Pictures of every page in both themes, on a run of your own: what README.md and docs/pages.md show.

    kiseki demo demo-run
    python bench/support/page_screenshots.py demo-run docs/images

It serves the run on a free port, and looks at it with the system's Chromium, as the browser tests do.
"""

import argparse
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from playwright.sync_api import Browser, Locator, Page, ViewportSize, sync_playwright

from search_api.client import Client
from ui.html.places import pack

SIZE = ViewportSize(width=1280, height=860)
OWN_WORDS = "You asked what I remember. ", " And, if I am not mistaken, it went on like this: "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with served(arguments.run) as url, sync_playwright() as playwright:
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if chromium is None:
            sys.exit("expected chromium or google-chrome on PATH, found none; see `make browser`")
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        paths = views(url)
        for theme in ("light", "dark"):
            for name, (path, there) in paths.items():
                picture = arguments.out / f"{name}-{theme}.webp"
                take(browser, url + path, there, theme, picture)
                print(f"{picture}  {picture.stat().st_size / 1000:,.0f} kB")
        browser.close()


@contextmanager
def served(run: Path) -> Iterator[str]:
    """URL of the run's pages."""
    command = [str(Path(sys.executable).with_name("kiseki")), "serve", str(run), "--port", "0", "--sql"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline() if server.stdout is not None else ""
            found = re.search(r"http://[\d.]+:\d+", line)
            if found is None:
                sys.exit(f"the server did not start: {line}")
            yield found[0]
        finally:
            server.send_signal(signal.SIGINT)


def views(url: str) -> Mapping[str, tuple[str, Callable[[Page], Locator]]]:
    """By name: a path, and what is on the page once it is there."""
    with Client(url) as client:
        run = client.runs()[0]
        step = client.run(run["run_id"])["last_step"]
        first, second = (a_passage(client, run["run_id"], max(1, at)) for at in (step // 3, 2 * step // 3))
        text = f"{OWN_WORDS[0]}{first}{OWN_WORDS[1]}{second}"
        found = client.trace(text)
        span, document = max(found.spans, key=lambda span: int(span["count"])), found.documents[0]
        early = client.sequences([f"{run['run_id']}/a1/s{at}/r0/m0/q0" for at in range(1, min(step, 50) + 1)])
    varied = max(early, key=lambda row: len(row["segments"]))
    packed, name = pack({"text": text}), f"{span['start']}-{span['end']}"
    address = quote(varied["address"], safe="")
    at = (
        f"{varied['segments'][1]['start']}-{varied['segments'][1]['start'] + 12}"
        if len(varied["segments"]) > 1
        else "0-12"
    )
    return {
        "trace": (f"/?z={packed}", lambda page: page.locator("a.m").first),
        "evidence": (
            f"/?z={packed}&span={name}&checkpoint={3 * step // 4}", lambda page: page.locator("[data-test=seen]")
        ),
        "sequence": (f"/sequence?address={address}&at={at}", lambda page: page.locator(".segment").first),
        "tokens": (f"/sequence?address={address}&at={at}&show=tokens", lambda page: page.locator(".tok").first),
        "search": ("/search?q=vain%20OR%20mind", lambda page: page.locator(".hit").first),
        "steps": (f"/steps?step={step // 2}", lambda page: page.locator("section[data-metric]").first),
        "documents": (
            f"/documents?source={quote(document['source'])}&document={quote(document['document_id'])}",
            lambda page: page.locator(".hit").first,
        ),
        "sql": ("/sql?canned=loss", lambda page: page.locator("table").first),
        "runs": ("/runs", lambda page: page.locator("table").first),
    }  # fmt: skip


def a_passage(client: Client, run_id: str, step: int) -> str:
    """The longest segment of a sequence of a step, or its beginning."""
    found = client.sequence(f"{run_id}/a1/s{step}/r0/m0/q0")
    longest = max(found["segments"], key=lambda segment: int(segment["length"]))
    return str(longest["text"])[:420].strip()


def take(browser: Browser, url: str, there: Callable[[Page], Locator], theme: str, picture: Path) -> None:
    """One picture."""
    context = browser.new_context(viewport=SIZE, color_scheme="dark" if theme == "dark" else "light")
    page = context.new_page()
    page.goto(url)
    there(page).wait_for(timeout=30_000)
    page.wait_for_timeout(800)
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(picture, "WEBP", quality=82, method=6)
    context.close()


if __name__ == "__main__":
    main()
