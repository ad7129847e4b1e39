"""The search page in a real browser: hits, facets, the brushed histogram, pages, and queries that cannot be read."""

import re
from urllib.parse import quote

from playwright.sync_api import Page, expect

from search_api.client import Client
from tests.ui.browser.conftest import Served
from tests.ui.browser.test_hostile_text import check_nothing_ran

COUNT = "[data-test=count]"


def test_from_a_query_to_the_packed_sequence(page: Page, served: Served) -> None:
    with Client(served.url) as client:
        expected = client.search("the", limit=10, facets=True).page()
    page.goto("/search")
    page.get_by_label("Words, phrases").fill("the")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(COUNT)).to_have_text(f"Segments 1 to 10 of {expected['count']:,}")
    assert page.locator(".hit code").all_text_contents() == [hit["address"] for hit in expected["hits"]]
    marks = page.locator(".hit").first.locator("mark").all_text_contents()
    assert marks and {mark.casefold() for mark in marks} == {"the"}
    counts = page.locator(".facet .num").all_text_contents()
    assert counts == [f"{source['count']:,}" for source in expected["facets"]["sources"]]
    page.locator(".hit code").first.click()
    expect(page.locator(".segment").first).to_be_visible()
    assert quote(expected["hits"][0]["address"], safe="") in page.url


def test_pages_and_back(page: Page, served: Served) -> None:
    with Client(served.url) as client:
        everything = [hit["address"] for hit in client.search("the", sort="step")]
    page.goto("/search?q=the&sort=step")
    found = []
    for first in range(1, 22, 10):
        expect(page.locator(COUNT)).to_contain_text(f"Segments {first} to")
        found += page.locator(".hit code").all_text_contents()
        page.get_by_role("link", name="next page").click()
    assert found == everything[:30]
    expect(page.locator(COUNT)).to_contain_text("Segments 31 to")
    page.go_back()
    expect(page.locator(COUNT)).to_contain_text("Segments 21 to")
    page.get_by_role("link", name="first page").click()
    expect(page.locator(COUNT)).to_contain_text("Segments 1 to")


def test_facets_and_the_brushed_histogram_narrow_the_search(page: Page, served: Served) -> None:
    with Client(served.url) as client:
        of_source = client.search("the", source="devils-dictionary").page()["count"]
    page.goto("/search?q=the")
    page.locator(".facet a", has_text="devils-dictionary").click()
    expect(page.locator(COUNT)).to_contain_text(f"of {of_source}")
    expect(page.get_by_label("Only this source")).to_have_value("devils-dictionary")
    chart = page.locator("svg[data-brush]")
    box = chart.bounding_box()
    assert box is not None
    y = box["y"] + box["height"] / 3
    page.mouse.move(box["x"] + box["width"] * 0.1, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.4, y, steps=5)
    page.mouse.up()
    page.wait_for_url(re.compile(r"first=\d+"))
    first, last = (int(found) for found in re.findall(r"(?:first|last)=(\d+)", page.url))
    with Client(served.url) as client:
        count = client.search("the", source="devils-dictionary", first_step=first, last_step=last).page()["count"]
    assert 0 < count < of_source
    expect(page.locator(COUNT)).to_contain_text(f"of {count}")
    page.get_by_role("link", name="Show all steps").click()
    expect(page.locator(COUNT)).to_contain_text(f"of {of_source}")
    page.get_by_role("link", name="All sources").click()
    expect(page.locator(COUNT)).not_to_contain_text(f"of {of_source}")


def test_token_ngrams_and_japanese(page: Page, served: Served) -> None:
    with Client(served.url) as client:
        counts = {
            query: client.search(query).page()["count"] for query in ('ngram:" the"', "source:tatoeba-ja", "です")
        }
    assert all(counts.values())
    for query, count in counts.items():
        page.goto(f"/search?q={quote(query)}")
        expect(page.locator(COUNT)).to_contain_text(f"of {count:,}")
    page.goto("/search?q=the&lang=ja")
    expect(page.locator(COUNT)).to_contain_text("件")


def test_what_cannot_be_answered_is_said_in_words(page: Page) -> None:
    page.goto(f"/search?q={quote('(the AND cat')}")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("The mark stands where it went wrong")
    lines = (alert.locator("pre").text_content() or "").split("\n")
    assert lines[1:3] == ["  (the AND cat", "  ^"]
    for path, words in (
        ("/search", "Write a query above"),
        ("/search?q=zzzzqqqq", "No segment matches"),
        ("/search?q=the&cursor=nonsense", "Begin with the first page"),
        ("/search?q=the&first=9&last=3", "begins at step 9"),
        ("/search?q=the&first=x&sort=y&n=-1", "Segments 1 to"),
    ):
        page.goto(path)
        expect(page.get_by_text(words).first).to_be_visible()


def test_hostile_text_is_shown(page: Page) -> None:
    for query in (
        "begin",
        '"window pwned"',
        "<script>alert(1)</script>",
        'source:"hostile<script>window.pwned=1</script>"',
    ):
        page.goto(f"/search?q={quote(query)}")
        expect(page.locator(f"{COUNT}, .msg").first).to_be_visible()
        check_nothing_ran(page)
