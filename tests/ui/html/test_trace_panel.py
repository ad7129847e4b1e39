"""What is shown beside a traced text: lists of spans and documents, and one span with its places."""

from typing import Any

from tests.support.shown_html import read_html
from ui.html.places import Place
from ui.html.texts import say_in
from ui.html.trace_head import trace_head_html
from ui.html.trace_panel import (
    DOCUMENTS_SHOWN,
    SPANS_SHOWN,
    documents_html,
    hit_html,
    span_html,
    spans_html,
    tabs_html,
    times_text,
)  # fmt: skip

SAY, PLACE = say_in("en"), Place("trace", {"text": "abc", "doc": "1"})
HIT: dict[str, Any] = {
    "address": "r/a1/s5/r1/m0/q0", "offset": 9, "global_step": 5, "dp_rank": 1, "context_before": "be<fore ",
    "context_after": " after",
    "segments": [{"source": "web", "document_id": "d"}, {"source": "web", "document_id": ""}],
}  # fmt: skip


def span(number: int, **more: Any) -> dict[str, Any]:
    return {
        "start": number, "end": number + 3, "num_tokens": 3, "count": 1, "count_relation": "eq", "first_step": 5,
        "last_step": 5, "text": f"text <{number}>", "rarity_rank": number, "token_ids": [1, 2, 3], "dp_ranks": [1],
        "hits": [HIT], "exposures": [1, 0, 2], **more,
    }  # fmt: skip


def found(spans: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "spans": spans, "documents": [], "joined": [], "step_edges": [1, 11, 21, 31], "num_tokens": 9, "truncated": False,
        "num_tokens_covered": 6, "took_ms": 1.2, "shards_failed": 0, "shards_total": 2, "failures": [], **more,
    }  # fmt: skip


def one_span(answer: dict[str, Any], index: int = 0, *, checkpoint: int = 30, **more: Any) -> Any:
    alone = found([{**answer["spans"][index], **more}])
    return read_html(span_html(PLACE, SAY, answer, index, whole=alone, seen=alone, checkpoint=checkpoint, last_step=30))


def test_how_often_in_words() -> None:
    assert times_text(SAY, 1) == "once" and times_text(SAY, 1200) == "1,200 times"
    assert times_text(SAY, 1000, "gte") == "at least 1,000 times"


def test_listed_spans_rarest_first_and_how_many_more() -> None:
    spans = [span(number) for number in reversed(range(SPANS_SHOWN + 2))] + [span(99, rarity_rank=None)]
    shown = read_html(spans_html(PLACE, SAY, found(spans)))
    items = shown.texts("li")
    assert items[0] == "1 text <0> 3 tokens, seen once, step 5" and len(items) == SPANS_SHOWN
    assert shown.texts("p") == [
        "and 2 more, numbered in the text", "1 more common spans are underlined with dots; they open as well",
    ]  # fmt: skip
    assert read_html(spans_html(PLACE, SAY, found([span(0, last_step=8)]))).texts("p") == []
    assert list(read_html(tabs_html(PLACE, SAY, "documents", 4, 2)).links) == ["Rarest spans (4)"]


def test_documents_behind_the_spans() -> None:
    documents = [
        {"source": "web", "document_id": f"d{number}", "num_tokens": 5, "spans": [0, 1]}
        for number in range(DOCUMENTS_SHOWN + 3)
    ]
    shown = read_html(documents_html(PLACE, SAY, found([span(0), span(1, rarity_rank=None)], documents=documents)))
    assert shown.texts("li")[0] == "web / d0 5 tokens in spans [1], (1) · mark in the text"
    assert shown.texts("li", class_="on") == ["web / d1 5 tokens in spans [1], (1) · unmark"]
    assert shown.text.endswith("and 3 more in the JSON")
    assert "not known to the export" in documents_html(PLACE, SAY, found([span(0)]))


def test_one_span() -> None:
    shown = one_span(found([span(0, count=2000, count_relation="gte", dp_ranks=list(range(20)))]), checkpoint=15)
    facts = dict(zip(shown.texts("dt"), shown.texts("dd"), strict=True))
    assert facts["seen"] == "at least 2,000 times before checkpoint 15, at least 2,000 times in the whole run"
    assert facts["data-parallel ranks"].endswith("14, 15 …")
    assert shown.links["and 1,999 more"] == "search?q=ids%3A%5B1%202%203%5D"
    assert "steps 1–10: seen once" in shown.tooltips() and "Exposures over steps; the line" in shown.text
    assert "steps 11–20: seen 0 times" not in shown.links
    assert "line stands" not in one_span(found([span(0)])).text


def test_a_span_that_was_not_seen_alone() -> None:
    answer, nothing = found([span(0, dp_ranks=None, rarity_rank=None, count=3, token_ids=[1] * 300)]), found([])
    shown = read_html(span_html(PLACE, SAY, answer, 0, whole=nothing, seen=nothing, checkpoint=5, last_step=30))
    assert "A common span" in shown.text and "data-parallel ranks" not in shown.text
    assert "and 2 more" in shown.text and "and 2 more" not in shown.links


def test_a_passage_that_packing_cut_in_two() -> None:
    joins = [{"first": 0, "second": 1, "source": "web", "document_id": 'a "quoted" <d>'}]
    answer = found([span(0), span(1), span(2)], joined=joins)
    note = 'passage of web / a "quoted" <d>: it goes on in another span.'
    for index, other in ((0, "span=1-4"), (1, "span=0-3")):
        shown = one_span(answer, index)
        [link] = [link for link in shown.named("a") if link.text.endswith(note)]
        assert link.attributes["title"].endswith(note) and link.attributes["href"].endswith(other)
    assert note not in one_span(answer, 2).text


def test_a_place_of_a_span() -> None:
    shown = read_html(hit_html(PLACE, SAY, HIT, "x" * 500, 3))
    assert shown.text.startswith("step 5 · rank 1 · web / d r/a1/s5/r1/m0/q0 from token 9be<fore x")
    assert shown.texts("mark") == ["x" * 399 + "…"]
    assert shown.links["r/a1/s5/r1/m0/q0"].endswith("&at=9-12")
    assert "document unknown" in hit_html(PLACE, SAY, {**HIT, "segments": []}, "x", 1)


def test_the_head_of_a_trace() -> None:
    shown = read_html(trace_head_html(SAY, found([span(0)]), 30))
    assert shown.texts("dd") == ["6 / 9 (67%)", "1", "3 tokens", "0", "30", "1 ms"]
    cut = found([], num_tokens=0, num_tokens_covered=0, truncated=True, shards_failed=1, failures=["shard 3: gone"])
    shown = read_html(trace_head_html(SAY, cut, 30))
    assert "1 of 2 shards did not answer, so counts may be too small: shard 3: gone" in shown.texts(
        "div", class_="warning"
    )
    assert "A list was cut" in shown.text and "0 / 0 (0%)" in shown.text
