"""The trace page in a real browser: from a text to its evidence, links, the back button, the slider, problems in words."""

import csv
import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from search_api.client import Client
from tests.ui.browser.conftest import Served
from ui.html.places import pack

UNSEEN = "Nobody ever trained on this sentence of mine. "


@pytest.fixture(scope="module")
def passage(served: Served) -> str:
    """Something new, then the beginnings of two documents."""
    long = [
        text for (source, _), text in served.run.documents.items() if source == "devils-dictionary" and len(text) > 200
    ]
    return f"{UNSEEN}{long[0][:180]} -- {long[5][:160]}"


def trace_url(text: str, **more: str) -> str:
    return "/?" + "&".join([f"z={pack({'text': text})}", *(f"{name}={value}" for name, value in more.items())])


def test_from_an_empty_page_to_the_evidence_in_three_clicks(page: Page, served: Served, passage: str) -> None:
    with Client(served.url) as client:
        span = client.trace(passage).spans[0]
        hit = client.trace(token_ids=span["token_ids"], min_length=span["num_tokens"]).spans[0]["hits"][0]
    page.goto("/")
    expect(page.get_by_text("does not show why a model wrote it")).to_be_visible()
    page.get_by_label("What a model wrote").fill(passage)
    page.get_by_role("button", name="Trace", exact=True).click()
    page.locator("a.m").first.click()
    evidence = page.get_by_role("region")
    expect(evidence.locator(".quote")).to_have_text(span["text"])
    expect(evidence.locator("[data-test=seen]")).to_have_text({1: "once", 2: "2 times"}[span["count"]])
    assert evidence.locator("mark").first.text_content() == span["text"]
    assert hit["address"] in [each.text_content() for each in evidence.locator(".to-sequence").all()]
    evidence.locator(".to-sequence", has_text=hit["address"]).click()
    expect(page.locator(".segment mark").first).to_be_visible()
    assert "".join(mark.text_content() or "" for mark in page.locator(".segment mark").all()) == span["text"]


def test_a_copied_link_opens_the_same_view_elsewhere(
    page: Page, browser: Browser, served: Served, passage: str
) -> None:
    with Client(served.url) as client:
        generation = client.runs()[0]["generation"]
    page.goto(trace_url(passage, checkpoint=str(served.run.last_step - 1)))
    page.locator("a.m").last.click()
    expect(page.locator("[data-test=seen]")).to_be_visible()
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    link = page.evaluate("navigator.clipboard.readText()")
    assert f"gen={generation}" in link
    elsewhere = browser.new_context().new_page()
    elsewhere.goto(link)
    expect(elsewhere.locator("[data-test=seen]")).to_be_visible(timeout=30_000)
    for part in ("[data-part=aside]", "[data-part=left]", "a.m.sel", ".facts div:not(:last-child)", "svg .bar"):
        seen, expected = (each.locator(part).all_text_contents() for each in (elsewhere, page))
        assert seen == expected and expected, part
    elsewhere.context.close()


def test_a_span_opens_in_a_new_tab(page: Page, passage: str) -> None:
    page.goto(trace_url(passage))
    page.locator("a.m").first.hover()
    with page.context.expect_page() as opened:
        page.locator("a.m").first.click(modifiers=["Control"])
    expect(opened.value.locator(".quote")).to_be_visible()
    expect(page.locator("ol.spans")).to_be_visible()


def test_back_and_forward(page: Page, passage: str) -> None:
    page.goto(trace_url(passage))
    rarest = page.locator("ol.spans a").first
    expect(rarest).to_be_visible()
    page.locator("a.m").first.click()
    expect(page.locator(".quote")).to_be_visible()
    first = page.locator(".quote").text_content()
    page.locator("a.m").last.click()
    expect(page.locator(".quote")).not_to_have_text(first or "")
    page.go_back()
    expect(page.locator(".quote")).to_have_text(first or "")
    page.go_back()
    expect(rarest).to_be_visible()
    page.go_forward()
    expect(page.locator(".quote")).to_have_text(first or "")


def test_the_slider_changes_every_count(page: Page, served: Served, passage: str) -> None:
    with Client(served.url) as client:
        spans = client.trace(passage).spans
        before = {step: client.trace(passage, before_step=step + 1) for step in range(1, served.run.last_step)}
    again = next(span for span in spans if span["count"] > 1)
    step = next(step for step in reversed(before) if sum(span["count"] for span in before[step].spans) < len(spans) + 1)
    page.goto(trace_url(passage, span=f"{again['start']}-{again['end']}"))
    expect(page.locator("[data-test=seen]")).to_have_text(f"{again['count']} times")
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(served.run.last_step - step):
        slider.press("ArrowLeft")
    facts = page.locator(".facts")
    expect(facts).to_contain_text(f"as of model checkpoint{step}")
    expect(facts).to_contain_text(f"{before[step]['num_tokens_covered']} / {before[step]['num_tokens']}")
    assert f"checkpoint={step}" in page.url
    left = next(span["count"] for span in before[step].spans if span["start"] == again["start"])
    assert left < again["count"]
    expect(page.locator("[data-test=seen]")).to_have_text(
        f"once before checkpoint {step}, {again['count']} times in the whole run"
    )
    expect(page.locator("svg .checkpoint")).to_have_count(1)


def test_documents_and_what_each_covers(page: Page, served: Served, passage: str) -> None:
    with Client(served.url) as client:
        documents = client.trace(passage, num_hits=10).documents
    page.goto(trace_url(passage))
    page.get_by_role("link", name="Documents (").click()
    expect(page.locator("ol.spans > li")).to_have_count(len(documents))
    page.get_by_role("link", name="mark in the text").first.click()
    expect(page.locator("a.m.ofdoc").first).to_be_visible()
    marked = {at for each in page.locator("a.m.ofdoc").all() for at in (each.get_attribute("data-s") or "").split()}
    assert set(map(str, documents[0]["spans"])) <= marked


def test_json_and_csv_hold_what_is_shown(page: Page, served: Served, passage: str, tmp_path: Path) -> None:
    with Client(served.url) as client:
        expected = client.trace(passage, num_hits=10)
    page.goto(trace_url(passage))
    for name, path in (("Download JSON", tmp_path / "trace.json"), ("Download CSV", tmp_path / "trace.csv")):
        with page.expect_download() as download:
            page.get_by_role("button", name=name).click()
        download.value.save_as(path)
    assert json.loads((tmp_path / "trace.json").read_text("utf-8"))["spans"] == expected.spans
    with (tmp_path / "trace.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [(line["address"], line["text"]) for line in lines] == [
        (hit["address"], span["text"]) for span in expected.spans for hit in span["hits"] or [{"address": ""}]
    ]


def test_uploads(page: Page, passage: str, tmp_path: Path) -> None:
    chat = {"messages": [{"role": "user", "content": "say it"}, {"role": "assistant", "content": passage}]}
    answers = [{"choices": [{"message": {"content": text}}]} for text in ("nothing known", passage)]
    (tmp_path / "chat.json").write_text(json.dumps(chat), "utf-8")
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, answers)), "utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x00\x00\x00")
    page.goto("/")
    upload = page.locator("input[type=file]")
    upload.set_input_files(tmp_path / "picture.png")
    expect(page.get_by_role("alert")).to_contain_text("picture.png: expected a text, a chat")
    upload.set_input_files(tmp_path / "chat.json")
    page.get_by_role("button", name="Trace this output").click()
    expect(page.locator("a.m").first).to_be_visible()
    page.goto("/")
    upload.set_input_files(tmp_path / "log.jsonl")
    page.get_by_label("Output, of 2 in the file").fill("2")
    page.get_by_label("Output, of 2 in the file").press("Enter")
    page.get_by_role("button", name="Trace this output").click()
    expect(page.locator("a.m").first).to_be_visible()


def test_the_way_out_of_an_unknown_run(page: Page) -> None:
    page.goto("/runs?run=nothing&lang=en")
    expect(page.get_by_role("alert")).to_contain_text("Choose a run at the top of the page.")
    page.get_by_role("combobox").click()
    page.get_by_role("option", name="pages").click()
    expect(page.locator("h2").first).to_have_text("Run pages")
    assert "run=pages" in page.url


def test_problems_are_said_in_words(page: Page, passage: str) -> None:
    for path, words in (
        ("/?run=nothing&text=a", "There is no such run here"),
        ("/?z=eNqrVkrLz1eyUkpK", "copy it again"),
        ("/?text=zzzzqqqq", "No span of 8 or more tokens occurs"),
        (trace_url(passage, gen="999"), "was made when the index was at generation 999"),
        ("/sequence?address=nonsense", "expected a sequence address such as run/a1/s120/r3/m0/q5"),
        ("/sequence?address=pages/a1/s9999/r0/m0/q0", "No such sequence is in the index"),
        ("/?text=a&min=-5&checkpoint=abc&span=9-1&doc=99&panel=none", "No span"),
    ):
        page.goto(path)
        expect(page.locator(".msg").first).to_contain_text(words)
