"""The documents page and the SQL page in a real browser: exposures, coverage, files, charts, and servers without SQL."""

import csv
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Page, expect

from search_api.client import Client
from tests.ui.browser.conftest import Served
from tests.ui.browser.test_hostile_text import check_nothing_ran
from ui.html.canned_queries import QUERIES, TITLES


def test_a_document_from_a_hit_and_its_exposures(page: Page, served: Served) -> None:
    with Client(served.url) as client:
        hit = client.search("the", limit=1).page()["hits"][0]
        found = client.document(hit["source"], hit["document_id"]).page()
    page.goto("/search?q=the")
    page.locator(".hit a").first.click()
    expect(page.get_by_label("Document id")).to_have_value(hit["document_id"])
    expect(page.locator(".hit")).to_have_count(found["num_exposures"])
    addresses = page.locator(".hit code").all_text_contents()
    assert addresses == [exposure["address"] for exposure in found["exposures"]]
    texts = [" ".join(text.split()) for text in page.locator(".hit .quote").all_text_contents()]
    assert texts[0] == " ".join(found["exposures"][0]["text"].split())
    facts = page.locator(".facts")
    expect(facts).to_contain_text(f"exposures{found['num_exposures']}steps{found['num_steps']}")
    expect(facts).to_contain_text(f"different tokens{found['num_tokens_distinct']:,} / {found['end_token']:,}")
    expect(page.locator("svg[aria-label*='of the tokens'] rect")).to_have_count(len(found["ranges"]))
    late = found["exposures"][-1]["global_step"]
    page.goto(f"/documents?source={quote(hit['source'])}&document={quote(hit['document_id'])}&first={late}")
    expect(page.locator(".hit")).to_have_count(sum(each["global_step"] >= late for each in found["exposures"]))
    page.locator(".hit code").first.click()
    expect(page.locator(".segment").first).to_be_visible()


def test_documents_of_any_name(page: Page, served: Served) -> None:
    hostile = [key for key in served.run.documents if key[0].startswith("hostile")]
    for source, document_id in [*hostile[:6], *hostile[34:38]]:
        page.goto(f"/documents?source={quote(source)}&document={quote(document_id)}")
        expect(page.locator(".hit").first).to_be_visible()
        check_nothing_ran(page)


def test_documents_that_are_not_there(page: Page) -> None:
    for path, words in (
        ("/documents", "Name a document by its source and id"),
        ("/documents?source=devils-dictionary&document=nothing", "No exposure of such a document"),
        ("/documents?document=nothing", "No exposure of such a document"),
        ("/documents?source=a&document=b&first=9&last=3", "begins at step 9"),
    ):
        page.goto(path)
        expect(page.locator(".msg").first).to_contain_text(words)


@pytest.mark.parametrize("name", QUERIES)
def test_every_ready_made_question_is_answered(page: Page, served: Served, name: str) -> None:
    with Client(served.url) as client:
        expected = client.sql(QUERIES[name])
    page.goto("/sql")
    page.get_by_role("link", name=TITLES[name], exact=True).click()
    expect(page.locator("[data-test=rows]")).to_have_text(f"{len(expected):,} rows")
    if expected:
        expect(page.locator("tbody tr")).to_have_count(min(200, len(expected)))
        heads = page.locator("thead th").all_text_contents()
        assert heads == expected.to_arrow().column_names


def test_an_own_question_its_files_and_its_link(page: Page, served: Served, tmp_path: Path) -> None:
    statement = "SELECT address, loss, leaf, [1, 2] AS list FROM sequences WHERE global_step < 4 ORDER BY address"
    with Client(served.url) as client:
        expected = client.sql(statement)
    page.goto("/sql")
    page.get_by_label("One SELECT").fill(statement)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("[data-test=rows]")).to_have_text(f"{len(expected)} rows")
    link = page.url
    for name in ("CSV", "Parquet"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Download {name}").click()
        download.value.save_as(tmp_path / name)
    assert pq.read_table(tmp_path / "Parquet").to_pylist() == list(expected)
    with (tmp_path / "CSV").open(newline="", encoding="utf-8") as file:
        assert [row["address"] for row in csv.DictReader(file)] == [row["address"] for row in expected]
    page.goto(link)
    expect(page.locator("[data-test=rows]")).to_have_text(f"{len(expected)} rows")
    page.locator("tbody a").first.click()
    expect(page.locator(".mono").first).to_have_text(expected[0]["address"])


def test_a_chart_where_there_is_one(page: Page) -> None:
    page.goto("/sql?canned=loss")
    expect(page.locator("svg.chart .line")).to_have_count(2)
    page.goto("/sql?canned=sources")
    expect(page.locator("tbody tr").first).to_be_visible()
    expect(page.locator("svg.chart")).to_have_count(0)
    page.goto("/sql?sql=" + quote("SELECT (20 - range) AS step, range FROM range(20)"))
    expect(page.locator("tbody tr").first).to_be_visible()
    expect(page.locator("svg.chart")).to_have_count(0)


def test_what_sql_refuses_is_said_in_words(page: Page) -> None:
    for statement, words in (
        ("DROP TABLE steps", "SELECT"),
        ("SELECT * FROM nothing", "nothing"),
        ("SELECT * FROM read_csv('/etc/passwd')", ""),
    ):
        page.goto(f"/sql?sql={quote(statement)}")
        expect(page.get_by_role("alert")).to_contain_text(words)
    page.goto("/sql?sql=" + quote("SELECT range FROM range(20000)"))
    expect(page.locator(".msg.warning")).to_contain_text("There are more")
    hostile = "SELECT '<script>window.pwned=1</script>' AS \"<img src=x onerror=window.pwned=1>\""
    page.goto(f"/sql?sql={quote(hostile)}")
    expect(page.locator("tbody td")).to_have_text("<script>window.pwned=1</script>")
    check_nothing_ran(page)
