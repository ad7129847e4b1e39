"""Corpus text, names and queries of strangers: shown as the text that they are, and nothing of them runs."""

import re
from urllib.parse import quote

from playwright.sync_api import Page, expect

from search_api.client import Client
from tests.support.pages_run import HOSTILE
from tests.ui.browser.conftest import Served
from ui.html.places import pack

INVISIBLE = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]"


def as_shown(text: str) -> str:
    """The text with invisible characters named, and white space run together, as a reader sees it."""
    named = re.sub(INVISIBLE, lambda found: f"U+{ord(found[0]):04X}", text)
    return " ".join(named.split())


def check_nothing_ran(page: Page) -> None:
    assert page.evaluate("window.pwned") is None
    assert (
        page.locator(".k")
        .locator("script, img, iframe, object, embed, form, input, link, meta, base, style, h1")
        .count()
        == 0
    )
    handlers = "all => all.flatMap(e => [...e.attributes]).filter(a => a.name.startsWith('on')).length"
    assert page.locator(".k *").evaluate_all(handlers) == 0
    strange = "all => all.filter(a => new URL(a.getAttribute('href'), location).origin !== location.origin).length"
    assert page.locator(".k a[href]").evaluate_all(strange) == 0


def test_in_a_traced_text_and_in_the_corpus(page: Page, served: Served) -> None:
    text = "\n".join(served.run.documents[key] for key in served.run.documents if key[0].startswith("hostile"))
    page.goto(f"/?min=1&z={pack({'text': text})}")
    expect(page.locator("a.m").first).to_be_visible()
    shown = " ".join((page.locator(".text").last.evaluate(WITHOUT_NUMBERS)).split())
    for string in HOSTILE:
        assert as_shown(string) in shown, string
    check_nothing_ran(page)
    page.get_by_role("link", name="Documents (").click()
    page.wait_for_url(re.compile("panel=documents"))  # the panel before it has a list of the same kind
    expect(page.locator("ol.spans > li").first).to_be_visible()
    check_nothing_ran(page)
    page.locator("a.m").nth(3).click()
    expect(page.locator(".quote")).to_be_visible()
    check_nothing_ran(page)


# The text of an element without the numbers of spans, which stand in <sup>.
WITHOUT_NUMBERS = (
    "e => { const c = e.cloneNode(true); c.querySelectorAll('sup').forEach(s => s.remove()); return c.textContent; }"
)


def test_in_packed_sequences_and_names_of_documents(page: Page, served: Served) -> None:
    with Client(served.url) as client:
        rows = {
            client.trace(f"begin {at}:", min_length=1).spans[0]["hits"][0]["address"]: None
            for at in range(len(HOSTILE))
        }
        found = client.sequences(list(rows)[::2])
    texts, names = "", ""
    for row in found:
        page.goto(f"/sequence?address={quote(row['address'])}")
        expect(page.locator(".segment").first).to_be_visible()
        expect(page.locator(".mono").first).to_have_text(row["address"])
        names += " ".join(page.locator(".segment .head").all_text_contents())
        shown = page.locator(".segment").evaluate_all(WITHOUT_HEADS)
        texts += shown
        assert " ".join(shown.split()) == as_shown(row["text"])
        check_nothing_ran(page)
    squeezed = "".join(texts.split())
    assert sum("".join(as_shown(string).split()) in squeezed for string in HOSTILE) > len(HOSTILE) // 4
    assert "hostile<script>window.pwned=1</script> / " in names
    page.goto(f"/sequence?show=tokens&address={quote(found[0]['address'])}")
    expect(page.locator(".tok").first).to_be_visible()
    check_nothing_ran(page)


WITHOUT_HEADS = """all => all.map(e => { const c = e.cloneNode(true); c.querySelectorAll('.head').forEach(h => h.remove());
 return c.textContent; }).join('')"""


def test_in_links(page: Page) -> None:
    bad = [quote(HOSTILE[at]) for at in (0, 16, 25, 33)]
    everywhere = [f"/?text={each}&source={each}&span={each}&min={each}&lang={each}&doc={each}" for each in bad]
    for path in (*everywhere, f"/sequence?address={bad[0]}&at={bad[0]}", f"/runs?run={bad[1]}"):
        page.goto(path)
        expect(page.locator(".msg").first).to_be_visible()
        check_nothing_ran(page)
