"""How long the trace page takes in a real browser, from the click to the spans in the text: 100 to 10,000 tokens.

    python bench/pages.py RUN [--repeat 3]

The texts are sequences of the run, cut by words that are not in it. The API's own time is beside it.
"""

import os
import shutil
import statistics
import sys
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.support.history import bench_options, recorded
from bench.support.page_screenshots import served
from search_api.client import Client, ClientOptions

NUM_TOKENS = (100, 500, 2_000, 10_000)


def main() -> None:
    parser = bench_options(__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    print(
        f"{'tokens':>8} {'spans':>7} {'API, s':>8} {'page, s':>8} {'a span, s':>10}   (medians of {arguments.repeat})"
    )
    with served(arguments.run) as url, sync_playwright() as playwright, recorded("pages", arguments) as figures:
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        page = browser.new_page()
        page.goto(url)
        page.locator(".msg").wait_for()
        for num_tokens in NUM_TOKENS:
            text = a_text(url, num_tokens)
            with Client(url, ClientOptions(timeout_s=60)) as client:
                found = client.trace(text, num_hits=10)
            times = [looks(page, url, text, number) for number in range(arguments.repeat)]
            page_s, span_s = (statistics.median(column) for column in zip(*times, strict=True))
            asked = f"{found['num_tokens']:>8,} {len(found.spans):>7,} {found['took_ms'] / 1000:>8.2f}"
            figures.add(f"{num_tokens} tokens, answer of the API", found["took_ms"] / 1000, "s")
            figures.add(f"{num_tokens} tokens, spans shown", page_s, "s")
            figures.add(f"{num_tokens} tokens, one span opened", span_s, "s")
            print(f"{asked} {page_s:>8.2f} {span_s:>10.2f}")
        browser.close()


def a_text(url: str, num_tokens: int) -> str:
    """Pieces of 60 tokens of the run's sequences, each after a few words of its own."""
    with Client(url) as client:
        run = client.run(client.runs()[0]["run_id"])
        parts: list[str] = []
        for step in range(1, run["last_step"] + 1):
            for rank in range(run["attempts"][0]["num_writers"]):
                for microbatch in range(2):
                    if len(parts) * 66 >= num_tokens:
                        return " ".join(parts)
                    address = f"{run['run_id']}/a1/s{step}/r{rank}/m{microbatch}/q0"
                    texts = client.sequence(address, tokens=True)["token_texts"]
                    parts.append("".join(texts[at] for at in range(20, 80)) + f" zq{step} xv{rank}")
    return " ".join(parts)


def looks(page: Page, url: str, text: str, number: int) -> tuple[float, float]:
    """Seconds from the form's button to marked spans, and from a click on one to its evidence."""
    page.goto(url)
    box = page.get_by_label("What a model wrote")
    box.fill(f"{text} {number}")
    page.wait_for_timeout(300)
    started = time.perf_counter()
    page.get_by_role("button", name="Trace", exact=True).click()
    page.locator("a.m").first.wait_for(timeout=60_000)
    traced = time.perf_counter()
    page.locator("a.m").nth(1).click()
    page.locator("[data-test=seen]").wait_for(timeout=60_000)
    return traced - started, time.perf_counter() - traced


if __name__ == "__main__":
    main()
