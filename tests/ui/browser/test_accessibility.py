"""axe-core finds nothing serious on any page, in the light and in the dark theme; the keyboard alone gets to the evidence."""

from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from search_api.client import Client
from tests.ui.browser.conftest import Served
from tests.ui.browser.test_trace_page import trace_url


def findings(page: Page) -> list[str]:
    """Serious and critical findings, as `rule: element`."""
    violations: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {node['target']} {node['html'][:200]} {node['failureSummary'][:300]}"
        for violation in violations
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_findings(browser: Browser, served: Served, theme: Any) -> None:
    with Client(served.url) as client:
        documents = [text for (source, _), text in served.run.documents.items() if source == "devils-dictionary"]
        span = client.trace(documents[0][:300]).spans[0]
        address = client.trace(token_ids=span["token_ids"]).spans[0]["hits"][0]["address"]
    document_id = next(name for source, name in served.run.documents if source == "devils-dictionary")
    context = browser.new_context(base_url=served.url, color_scheme=theme, viewport={"width": 1360, "height": 900})
    context.set_default_timeout(30_000)
    page = context.new_page()
    for path, there in (
        ("/", ".msg"),
        (trace_url(documents[0][:300]), "a.m"),
        (trace_url(documents[0][:300], span=f"{span['start']}-{span['end']}", checkpoint="40"), ".quote"),
        (f"/sequence?address={address}&at=0-9&show=tokens", ".tok"),
        (f"/sequence?address={address}&at=0-9", ".segment mark"),
        ("/runs", ".k table"),
        ("/search?q=the", ".hit"),
        ("/search?q=(the", ".msg pre"),
        ("/steps?step=30&a=1-20&b=21-45", ".unusual, .aside h3"),
        ("/steps", "svg .mark"),
        ("/documents?source=devils-dictionary&document=" + quote(document_id), ".quote"),
        ("/sql?canned=loss", ".k table"),
    ):
        page.goto(path)
        expect(page.locator(there).first).to_be_visible()
        page.wait_for_timeout(300)  # Streamlit fades elements in
        assert findings(page) == [], path
    context.close()


def test_keyboard_alone_reaches_the_evidence(page: Page, served: Served) -> None:
    text = next(text for (source, _), text in served.run.documents.items() if source == "devils-dictionary")
    page.goto(trace_url(text[:200]))
    first = page.locator("a.m").first
    expect(first).to_be_visible()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('a.m') || !!document.activeElement.shadowRoot?.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.locator(".quote")).to_be_visible()
