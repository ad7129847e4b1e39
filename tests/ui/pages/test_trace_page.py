"""The trace page: what is pasted or uploaded, the spans that it shows, the one that is opened, and what its URL holds."""

import json

import pytest

from tests.support.opened_page import open_page
from tests.support.pages_run import HOSTILE, PagesRun
from ui.html.places import pack, unpack

ALL_HOSTILE = "\n".join(HOSTILE)
A_CHAT = {"messages": [{"role": "user", "content": "what is <b>?"}, {"role": "assistant", "content": "begin 1: <img"}]}


@pytest.mark.usefixtures("one_run")
def test_without_a_text_it_says_what_to_do() -> None:
    page = open_page("trace")
    assert page.html.texts("div", role="status") == [
        "Paste a text above, or upload a file, to see which parts of it the model was trained on."
    ]
    assert "It does not show why a model wrote it" in page.text


@pytest.mark.usefixtures("one_run")
def test_a_pasted_text_is_traced_and_stands_in_the_url() -> None:
    page = open_page("trace").fill("in_trace_text", "begin 0: <script>window").press("Trace")
    assert page.params == {"text": "begin 0: <script>window"}
    [text] = page.html.named("div", class_="text")
    assert text.text.endswith("begin 0: <script>window")
    assert page.html.texts("dd")[0].endswith("(100%)")
    page.fill("in_trace_text", "").press("Trace")
    assert page.params == {} and "Paste a text above" in page.text


@pytest.mark.usefixtures("one_run")
def test_a_long_text_and_a_chat_are_packed_into_the_url() -> None:
    page = open_page("trace").fill("in_trace_text", "begin 0: <script>\r\n" * 30).press("Trace")
    assert unpack(page.params["z"]) == {"text": "begin 0: <script>\n" * 30} and "text" not in page.params
    page.fill("in_trace_text", json.dumps(A_CHAT)).press("Trace")
    assert unpack(page.params["z"]) == {"text": "begin 1: <img", "prompt": "what is <b>?"}
    assert page.html.texts("div", class_="text")[0] == "what is <b>?"


@pytest.mark.usefixtures("one_run")
def test_an_uploaded_file() -> None:
    page = open_page("trace")
    [field] = page.app.file_uploader
    lines = json.dumps(A_CHAT) + '\n{"output": "begin 0: <script>"}\n'
    field.set_value(("some.jsonl", lines.encode(), "application/json"))
    page.run()
    [number] = [number for number in page.app.number_input if number.label == "Output, of 2 in the file"]
    number.set_value(2)
    page.press("Trace this output")
    assert page.params["text"] == "begin 0: <script>"
    page.app.file_uploader[0].set_value(("one.txt", b"begin 2: <svg", "text/plain"))
    page.run().press("Trace this output")
    assert page.params["text"] == "begin 2: <svg"


@pytest.mark.usefixtures("one_run")
def test_a_file_that_cannot_be_read() -> None:
    page = open_page("trace")
    page.app.file_uploader[0].set_value(("a.png", b"\x89PNG\0", "image/png"))
    assert "a.png: expected a text" in page.run().problem and "found a binary file" in page.problem


@pytest.mark.usefixtures("one_run")
def test_a_link_that_was_cut() -> None:
    page = open_page("trace", z=pack({"text": "abc"})[:-4])
    assert "expected a whole link" in page.problem and "Paste a text above" in page.text


@pytest.mark.usefixtures("one_run")
def test_no_span() -> None:
    page = open_page("trace", text="zzqq vvxx", min="900")
    assert "No span of 900 or more tokens occurs in the selected steps." in page.text
    assert page.html.texts("div", class_="text") == ["zzqq vvxx"]


@pytest.mark.usefixtures("one_run")
def test_spans_and_the_documents_behind_them() -> None:
    page = open_page("trace", z=pack({"text": ALL_HOSTILE}), min="4")
    spans = page.html.named("a", class_="m")
    assert len(spans) > 20 and spans[0].attributes["title"].split(" tokens, seen ")[0].isdigit()
    [documents] = [text for text in page.html.links if text.startswith("Documents (")]
    page.click(documents)
    assert page.html.texts("span", class_="on") == [documents]
    assert any(" / 0<script>window.pwned=1</script>" in text for text in page.html.texts("li"))
    page.click("mark in the text")
    assert page.params["doc"] == "0" and page.marked_document and page.html.named("li", class_="on")
    page.click("unmark")
    assert not page.marked_document
    page.click(next(text for text in page.html.links if text.startswith("Rarest spans")))
    assert "panel" not in page.params


def test_one_span_in_the_whole_run_and_as_a_checkpoint_had_seen_it(one_run: PagesRun) -> None:
    text = next(iter(one_run.documents.values()))[:60]
    page = open_page("trace", text=text, min="4", checkpoint="10")
    page.go(page.html.named("a", class_="m")[0].attributes["href"])
    assert page.html.texts("span", data_test="seen") == ["once before checkpoint 10, 2 times in the whole run"]
    assert page.marked_spans == [0] and page.html.texts("h2")[0].endswith("Span 1 of 1")
    assert page.html.named("line", class_="checkpoint")
    page.go(page.html.named("a", class_="to-sequence")[0].attributes["href"])
    assert page.page == "sequence" and page.params["address"].startswith("pages/a")
    assert "".join(page.html.texts("mark")) == text  # in two pieces where the loss mask begins to count


@pytest.mark.usefixtures("one_run")
def test_the_way_from_span_to_span() -> None:
    page = open_page("trace", z=pack({"text": ALL_HOSTILE}), min="4")
    first, second, *_ = [span.attributes["href"] for span in page.html.named("a", class_="b")]
    assert "◂ before" not in page.go(first).html.links
    assert page.html.links["next ▸"].endswith(second.partition("span=")[2])
    assert page.go(second).html.links["◂ before"].endswith(first.partition("span=")[2])
    assert "span" not in page.click("all spans").params


@pytest.mark.usefixtures("one_run")
def test_fields_write_into_the_url() -> None:
    page = open_page("trace", text="begin 0: <script>", span="0-3")
    page.fill("in_trace_min", 3).run()
    assert page.params == {"text": "begin 0: <script>", "min": "3"}
    page.fill("in_trace_source", "no such source").run()
    assert "there is no source" in page.problem.lower() or "No span of 3" in page.text
    page.fill("in_trace_source", "").fill("in_trace_min", 8).fill("in_trace_checkpoint", 7).run()
    assert page.params == {"text": "begin 0: <script>", "checkpoint": "7"}


@pytest.mark.usefixtures("one_run")
def test_a_link_of_another_generation() -> None:
    page = open_page("trace", text="begin 0:", min="1", gen="77")
    assert "This link was made when the index was at generation 77; it is at 1 now" in page.text
    assert "generation 77" not in open_page("trace", text="begin 0:", min="1", gen="1").text
    assert page.downloads == ["Download JSON", "Download CSV"]
