"""The sequence page and the runs page in a real browser; and everything in Japanese."""

import itertools

import numpy as np
from playwright.sync_api import Page, expect

from indexer.reader import IndexReader
from tests.support.export_maker import all_rows
from tests.ui.browser.conftest import Served
from tests.ui.browser.test_trace_page import trace_url
from ui.html.texts import JAPANESE


def test_a_sequence_its_neighbours_tokens_and_mask(page: Page, served: Served) -> None:
    rows = [row for row in all_rows(served.run.run_dir) if row.address.dp_rank == 1 and row.address.attempt == 2]
    reader = IndexReader.open(served.run.run_dir)
    page.goto(f"/sequence?address={rows[2].address}")
    for way, expected in (("after", rows[3]), ("after", rows[4]), ("before", rows[3])):
        page.locator(f"a.{way}").click()
        expect(page.locator(".mono").first).to_have_text(str(expected.address))
        expect(page.locator(".mono").nth(1)).to_have_text(expected.leaf.hex())
        assert page.get_by_label("Address of a sequence").input_value() == str(expected.address)
    struck = "".join(page.locator("del.out").all_text_contents())
    assert struck == reader.tokenizer.decode(rows[3].tokens[:8]), (
        "the labels of the first eight positions count nothing"
    )
    heads = page.locator(".segment .head").all_text_contents()
    starts = [segment.start for segment in rows[3].segments]
    assert [f"tokens {start:,}–" in head for head, start in zip(heads, starts, strict=False)] == [True] * len(starts)
    page.get_by_role("radio", name="Tokens").or_(page.get_by_role("button", name="Tokens")).click()
    expect(page.locator(".tok")).to_have_count(len(rows[3].tokens))
    titles = page.locator(".tok").evaluate_all("all => all.map(e => e.title)")
    assert titles == [f"token {at}, id {token}" for at, token in enumerate(rows[3].tokens.tolist())]
    assert page.locator(".tok.out").count() == 8 and "show=tokens" in page.url


def test_the_replay_snippet_gives_the_row_back(page: Page, served: Served) -> None:
    row = all_rows(served.run.run_dir)[-1]
    page.goto(f"/sequence?address={row.address}")
    page.get_by_role("button", name="Copy the snippet").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    snippet = page.evaluate("navigator.clipboard.readText()")
    names: dict[str, dict[str, object]] = {}
    exec(snippet.replace('"RUN"', repr(str(served.run.run_dir))), names)
    tensors = {name: np.asarray(value) for name, value in names["row"].items()}
    assert tensors["labels"].tolist() == [-100] * 8 + np.roll(row.tokens.astype(int), -1)[8:].tolist()
    assert any(np.array_equal(tensor, row.tokens) for tensor in tensors.values())


def test_attempts_and_what_was_rolled_back(page: Page, served: Served) -> None:
    addresses = [row.address for row in all_rows(served.run.run_dir)]
    steps = {
        attempt: sorted({address.global_step for address in group})
        for attempt, group in itertools.groupby(addresses, lambda address: address.attempt)
    }
    kept = steps[2][0] - 1
    page.goto("/runs")
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(2)
    first, second = (rows.nth(at).locator("td").all_text_contents() for at in (0, 1))
    assert first[3:6] == [f"1–{steps[1][-1]}", f"1–{kept}", f"{kept + 1}–{steps[1][-1]}"]
    assert second[2:6] == [
        f"step {kept} of attempt 1",
        f"{kept + 1}–{served.run.last_step}",
        f"{kept + 1}–{served.run.last_step}",
        "–",
    ]
    assert page.locator("svg .bar").count() == 3 and page.locator("svg .bar.dim").count() == 1
    facts = dict(
        zip(page.locator(".facts dt").all_text_contents(), page.locator(".facts dd").all_text_contents(), strict=True)
    )
    assert facts["steps that count"] == str(served.run.last_step) and facts["steps missing"] == "0"
    assert facts["steps rolled back"] == str(steps[1][-1] - kept)
    expect(page.get_by_role("status")).to_contain_text("Complete")


def test_everything_in_japanese(page: Page, served: Served) -> None:
    text = next(iter(served.run.documents.values()))[:200]
    page.goto(trace_url(text))
    page.get_by_role("link", name="日本語").click()
    expect(page.get_by_text(JAPANESE["rarest third"])).to_be_visible()
    page.locator("a.m").first.click()
    expect(page.locator("h3").first).to_have_text(JAPANESE["Exposures over steps"])
    page.get_by_role("link", name=JAPANESE["Runs"], exact=True).click()
    expect(page.get_by_role("status")).to_have_text(
        JAPANESE["Complete: every step up to the last indexed one is here, and nothing was left out."]
    )
    assert "lang=ja" in page.url
