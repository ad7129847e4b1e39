"""The steps page in a real browser: spikes, a step's explanation, ranges by dragging, sources, two windows, bad links."""

import re
import statistics

import pytest
from playwright.sync_api import Locator, Page, Position, expect

from search_api.client import Client
from tests.ui.browser.conftest import Served

METRICS = ("loss", "lr", "grad_norm")


def test_charts_show_every_spike_and_lead_to_its_sequences(page: Page, served: Served) -> None:
    with Client(served.url) as client:
        steps = list(client.steps())
        spikes = [step["global_step"] for step in steps if step["spikes"]]
        explained = client.explain(spikes[0])
    page.goto("/steps")
    expect(page.locator("svg .line")).to_have_count(len(METRICS))
    expect(page.locator(".facts")).to_contain_text(f"steps{len(steps)}spikes{len(spikes)}")
    marks = sum(len(step["spikes"]) for step in steps)
    expect(page.locator("svg .mark")).to_have_count(marks)
    page.get_by_role("link", name=f"step {spikes[0]}", exact=True).click()
    expect(page.get_by_role("heading", name=f"Step {spikes[0]} against")).to_be_visible()
    assert page.url.endswith(f"/steps?step={spikes[0]}")
    expect(page.locator("svg .chosen:not(.mark)")).to_have_count(len(METRICS))
    listed = page.locator(".unusual code").all_text_contents()
    assert listed == [row["address"] for row in explained["rows"]]
    expect(page.locator("[data-part=aside] td", has_text=explained["sources"][0]["source"])).to_be_visible()
    page.get_by_role("link", name="close").click()
    expect(page.get_by_role("heading", name="Spikes, the strongest first")).to_be_visible()


def test_a_click_on_a_chart_takes_the_step(page: Page) -> None:
    page.goto("/steps?first=10&last=40")
    chart = page.locator("[data-metric=loss] svg")
    chart.click(position=at(chart, 0.5))
    expect(page.get_by_role("heading", name=re.compile(r"Step 2[456] against"))).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name=re.compile("Spikes"))).to_be_visible()


def test_dragging_chooses_a_range(page: Page, served: Served) -> None:
    page.goto("/steps")
    chart = page.locator("[data-metric=loss] svg")
    expect(chart).to_be_visible()
    box = chart.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + at(chart, 0.25)["x"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + at(chart, 0.75)["x"], y, steps=5)
    page.mouse.up()
    page.wait_for_url(re.compile(r"first=\d+"))
    first, last = (int(found) for found in re.findall(r"(?:first|last)=(\d+)", page.url))
    assert abs(first - 12) <= 1 and abs(last - 34) <= 1
    expect(page.locator(".facts")).to_contain_text(f"steps{last - first + 1}")
    page.get_by_role("link", name="Take this range as window B").click()
    expect(page.get_by_label("Window B, steps")).to_have_value(f"{first}-{last}")
    page.get_by_role("link", name="Show all steps").click()
    expect(page.locator(".facts")).to_contain_text(f"steps{served.run.last_step}")


def test_two_windows_and_the_sources(page: Page, served: Served) -> None:
    with Client(served.url) as client:
        windows = [list(client.steps(first_step=first, last_step=last)) for first, last in ((1, 20), (21, 45))]
        counts = client.sql("SELECT source, count(*) AS num FROM segments WHERE canonical GROUP BY ALL")
    page.goto("/steps?a=1-20&b=21-45")
    row = page.get_by_role("row", name=re.compile("median of the loss"))
    medians = [f"{statistics.median(step['loss'] for step in window):.4g}" for window in windows]
    expect(row).to_contain_text("".join(medians))
    expect(page.get_by_role("row", name=re.compile("^steps 20 25"))).to_be_visible()
    for found in counts:
        mixed = page.get_by_role("row").filter(has=page.get_by_role("link", name=found["source"], exact=True))
        expect(mixed).to_contain_text(f"{found['source']}{found['num']:,}")
    bars = page.locator("svg[aria-label^=Share] rect")
    assert bars.count() >= 24


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/steps?first=30&last=20", "begins at step 30, after its end, step 20"),
        ("/steps?a=x-y&b=1-2", "Expected steps such as 100-200, found x-y"),
        ("/steps?step=999", "999"),
        ("/steps?step=1", "close"),
        ("/steps?attempt=77&first=abc&step=-1", "Spikes, the strongest first"),
    ],
)
def test_bad_links_are_answered_in_words(page: Page, path: str, words: str) -> None:
    page.goto(path)
    expect(page.get_by_text(words).first).to_be_visible()


def test_in_japanese(page: Page) -> None:
    page.goto("/steps?lang=ja&step=30")
    expect(page.get_by_role("heading", name="ステップの平均")).to_be_visible()
    expect(page.get_by_role("heading", name="ステップごとのソース")).to_be_visible()


def at(chart: Locator, share: float) -> Position:
    """Where a share of the steps is on a chart, in pixels of its box."""
    box = chart.bounding_box()
    assert box is not None
    scale = box["width"] / 640
    return {"x": (46 + (640 - 46 - 8) * share) * scale, "y": box["height"] / 2}
