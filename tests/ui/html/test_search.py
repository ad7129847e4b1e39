"""Search results and documents: snippets with their marks, facets, exposures; and rows of a query as table and chart."""

import datetime
from typing import Any

import pyarrow as pa
import pytest

from tests.support.shown_html import read_html
from ui.html.charts import Series, line_chart
from ui.html.documents import document_html, exposures_html
from ui.html.messages import origin_html, problem_html
from ui.html.places import Place
from ui.html.result_table import SHOWN_ROWS, chart_html, rows_html
from ui.html.search import facets_html, hits_html, quoted, steps_html
from ui.html.texts import say_in

SAY, PLACE = say_in("en"), Place("search", {"run": "r", "q": "x", "cursor": "c"})


def hit(**more: Any) -> dict[str, Any]:
    return {
        "address": "r/a1/s5/r1/m0/q0", "start": 3, "end": 9, "source": "web", "document_id": "d<1>", "global_step": 5,
        "dp_rank": 1, "score": None, "snippet": None, "snippet_start": 0, "highlights": [], **more,
    }  # fmt: skip


def answer(hits: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"hits": hits, "count": 1234, "count_relation": "eq", "shards_failed": 0, **more}


def test_a_snippet_with_overlapping_highlights() -> None:
    text = "a <b>\r\n\r\n\n\n\nc\u202ed"
    found = hit(snippet=text, snippet_start=100, highlights=[(102, 104), (103, 105), (112, 113)])
    shown = read_html(hits_html(PLACE, SAY, answer([found], count_relation="gte"), 20))
    assert shown.texts("h2") == ["Segments 21 to 21 of at least 1,234"]
    assert shown.texts("mark") == ["<b>", "c"]
    assert shown.texts("div", class_="context") == ["… a <b>\n\ncU+202Ed"]
    whole = read_html(hits_html(PLACE, SAY, answer([hit(snippet="ab", highlights=[(0, 1)], score=1.5)]), 0))
    assert whole.texts("div", class_="context") == ["ab"] and "score 1.50" in whole.text


def test_a_hit_without_a_document() -> None:
    shown = read_html(hits_html(PLACE, SAY, answer([hit(source="", document_id="")]), 0))
    assert "a stretch without a known document" in shown.text and list(shown.links) == ["r/a1/s5/r1/m0/q0"]
    assert "No segment matches" in hits_html(PLACE, SAY, answer([]), 0)


def test_facets() -> None:
    sources = [{"value": f"s{at}", "count": at} for at in range(25)] + [{"value": "", "count": 1}]
    facets = {"sources": sources, "dp_ranks": [], "truncated": False, "step_edges": [1, 2, 6], "steps": [0, 3]}
    shown = read_html(facets_html(PLACE, SAY, {"facets": facets}, "s1"))
    assert shown.texts("span", class_="on") == ["s1"] and "s1" not in shown.links and "All sources" in shown.links
    assert shown.links["s2"] == "search?run=r&q=x&source=s2" and "There are more sources" in shown.text
    few = {**facets, "sources": sources[-1:], "dp_ranks": [{"value": 3, "count": 7}]}
    shown = read_html(facets_html(PLACE, SAY, {"facets": few}, ""))
    assert "no known source" in shown.text and shown.text.endswith("3: 7") and "more sources" not in shown.text
    assert list(read_html(steps_html(PLACE, SAY, facets)).links) == ["steps 2 to 5: 3 segments"]


def test_any_text_as_a_phrase() -> None:
    assert quoted('a"\\') == '"a\\"\\\\"'


def test_a_document_that_was_seen_in_part() -> None:
    exposure = {
        "address": "r/a1/s5/r1/m0/q0", "start": 3, "length": 4, "global_step": 5, "dp_rank": 1, "document_token_offset": 10,
        "num_new_tokens": 4, "canonical": False, "text": None,
    }  # fmt: skip
    found = {
        "source": "web", "document_id": "d", "num_exposures": 3, "num_steps": 2, "first_step": 5, "last_step": 9,
        "num_tokens_seen": 12, "num_tokens_distinct": 8, "end_token": 16, "dp_ranks": [0, 1], "shards_failed": 0,
        "ranges": [(2, 6), (10, 14)], "times_seen": [(1, 4), (2, 4)], "exposures": [exposure],
    }  # fmt: skip
    shown = read_html(document_html(PLACE, SAY, found, [5, 9], 100))
    assert "50% of the tokens up to the last one that was seen. 4 tokens 1 times; 4 tokens 2 times." in shown.text
    assert "The chart shows the first 2 exposures." in shown.text and "tokens 10 to 14" in shown.tooltips()
    assert "steps 3 to 5: 1 exposures" in shown.tooltips()
    rows = read_html(exposures_html(PLACE, SAY, found, 7)).texts("div", class_="hit")
    assert rows == [
        "8. r/a1/s5/r1/m0/q0 step 5, rank 1; tokens 10 to 14 of the document, 4 of them for the first time · superseded"
    ]


def test_rows_of_a_query() -> None:
    table = pa.table(
        {
            "address": ["r/a1/s1/r0/m0/q0", None], "document_id": ["d", "e"], "source": ["web", ""], "x": [1.23456789, None],
            "hash": [b"\1\2", None], "day": [datetime.date(2026, 1, 2), None],
        }
    )  # fmt: skip
    shown = read_html(rows_html(PLACE, SAY, table))
    assert shown.rows[1:] == [
        ["r/a1/s1/r0/m0/q0", "d", "web", "1.23457", "0102", "2026-01-02"], ["–", "e", "", "–", "–", "–"]
    ]  # fmt: skip
    assert list(shown.links) == ["r/a1/s1/r0/m0/q0", "d"] and shown.texts("th", class_="num") == ["x"]
    many = pa.table({"n": list(range(SHOWN_ROWS + 5))})
    assert read_html(rows_html(PLACE, SAY, many)).text.endswith("5 more rows are in the file.")


def test_a_chart_of_what_can_be_drawn() -> None:
    table = pa.table({"global_step": [1, 3, 7], "n": [4, 0, 2], "loss": [1.0, None, 2.0], "name": ["a", "b", "c"]})
    shown = read_html(chart_html(SAY, table))
    assert shown.texts("h3") == ["n over global_step", "loss over global_step"]
    assert shown.tooltips() == ["1: 4", "3: 0", "7: 2"] and len(shown.named("polyline")) == 1


@pytest.mark.parametrize(
    "columns",
    [
        {"a": [1, 2], "n": [1, 2]}, {"step": ["1", "2"], "n": [1, 2]}, {"step": [1], "n": [1]}, {"step": [2, 1], "n": [1, 2]},
        {"step": [1, 1], "n": [1, 2]}, {"step": [1, None], "n": [1, 2]}, {"step": [1, 2], "n": [None, None]},
    ],
)  # fmt: skip
def test_no_chart_where_there_is_nothing_to_draw(columns: dict[str, list[Any]]) -> None:
    assert read_html(chart_html(SAY, pa.table(columns))).named("svg") == []


def test_lines_of_one_value_and_of_none() -> None:
    shown = read_html(line_chart(Series([5], [0.0]), label="x"))
    assert "-0.05" in shown.text and "0.05" in shown.text
    assert line_chart(Series([1], [float("nan")]), label="x") == ""
    assert not read_html(line_chart(Series([1, 2], [1.0, 2.0]), label="x", chosen=9)).named("line", class_="chosen")


def test_problems_and_origins() -> None:
    assert "The API does not answer." in problem_html(SAY, 0, "", "refused")
    assert read_html(problem_html(SAY, 400, "unheard-of", "a <b>\n ^")).texts("pre") == ["a <b>\n ^"]
    assert read_html(problem_html(SAY, 400, "unheard-of", "a")).text == "a"
    imported = {"origin": {"kind": "imported", "what": "<dump>"}}
    assert read_html(origin_html(SAY, imported)).text == "Imported from <dump>, not observed by the hook."
    assert "nobody saw training consume" in origin_html(SAY, {"origin": {"kind": "recomputed", "what": "x"}})
    assert origin_html(SAY, {"origin": {"kind": "observed", "what": ""}}) == ""
