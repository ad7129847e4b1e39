"""Steps as charts, spikes, sources and windows; and what is special about one step."""

import math
from typing import Any

import pytest

from tests.support.shown_html import read_html
from ui.html.explanation import explanation_html, number
from ui.html.places import Place
from ui.html.steps import (
    LINKED_SPIKES,
    LISTED_SPIKES,
    SourceMix,
    Window,
    charts_html,
    mix_html,
    parse_window,
    spikes_html,
    windows_html,
)  # fmt: skip
from ui.html.texts import say_in

SAY, PLACE = say_in("en"), Place("steps", {"run": "r"})


def step(number_of: int, loss: float | None = 2.0, *, deviations: float = 0, canonical: bool = True) -> dict[str, Any]:
    spike = {"metric": "loss", "value": loss, "deviations": deviations, "expected": 2.0}
    return {
        "global_step": number_of, "attempt": 1, "canonical": canonical, "num_tokens": 100, "loss": loss, "lr": None,
        "grad_norm": None, "spikes": [spike] if deviations else [],
    }  # fmt: skip


def answer(steps: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    num_spikes = sum(bool(each["spikes"]) for each in steps)
    return {"steps": steps, "num_steps": len(steps), "num_spikes": num_spikes, "truncated": False, **more}


def test_a_chart_for_each_metric_that_is_there() -> None:
    steps = [step(1), step(2, None), step(3, 9.0, deviations=12), step(4, math.nan, deviations=11)]
    shown = read_html(charts_html(PLACE, SAY, answer(steps, truncated=True), 3))
    assert shown.texts("h3") == ["loss"] and "4 of the steps are drawn" in shown.text
    assert shown.links["step 3: loss 9: 12 robust deviations above the expected 2"] == "steps?run=r&step=3"
    assert len(shown.named("circle", class_="chosen")) == 1 and shown.named("line", class_="chosen")
    nothing = read_html(charts_html(PLACE, SAY, answer([step(1, None)]), None))
    assert "The trainer recorded no loss, learning rate or gradient norm." in nothing.text


def test_the_strongest_spikes_first() -> None:
    steps = [step(at, 3.0, deviations=at, canonical=at % 2 == 0) for at in range(1, LINKED_SPIKES + 21)]
    shown = read_html(spikes_html(PLACE, SAY, answer(steps, num_spikes=500)))
    items = shown.texts("li")
    assert items[0].startswith("step 120 loss 3: 120 robust") and items[1].startswith("step 119 (superseded) loss 3")
    assert shown.links["step 119"].endswith("step=119&attempt_of=1") and shown.links["step 120"].endswith("step=120")
    assert len(items) == LISTED_SPIKES and shown.text.endswith("and 470 more")
    charts = read_html(charts_html(PLACE, SAY, answer(steps), None))
    assert len(charts.named("circle")) == 120 and len(charts.named("a")) == LINKED_SPIKES


def test_shares_of_the_sources() -> None:
    mix = SourceMix(edges=[1, 6, 11], counts={"web": [3, 0], "code": [1, 0], "": [0, 0]})
    shown = read_html(mix_html(PLACE, SAY, mix, 10))
    assert shown.rows[1:] == [["web", "3", "75.0%"], ["code", "1", "25.0%"], ["other sources", "0", "0.0%"]]
    assert shown.tooltips() == [
        "steps 1 to 5: web, 3 segments, 75.0%", "steps 1 to 5: code, 1 segments, 25.0%"
    ]  # fmt: skip
    assert shown.links["web"] == "search?run=r&q=source%3A%22web%22"


def test_two_windows() -> None:
    left = Window(first=1, last=2, steps=[step(1, 2.0), step(2, 4.0)], sources={"web": 1, "": 3})
    right = Window(first=3, last=4, steps=[step(3, 6.0, deviations=9)], sources={"code": 4})
    rows = read_html(windows_html(SAY, left, right)).rows
    assert rows == [
        ["", "steps 1 to 2", "steps 3 to 4", "change"], ["steps", "2", "1", ""], ["spikes", "0", "1", ""],
        ["median of the loss", "3", "6", "+100.0%"], ["tokens", "200", "100", ""],
        ["segments of code", "0.0%", "100.0%", "+100.0"], ["segments of no known source", "75.0%", "0.0%", "-75.0"],
        ["segments of web", "25.0%", "0.0%", "-25.0"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "window"),
    [("100-200", (100, 200)), (" 3–3 ", (3, 3)), ("3", None), ("5-3", None), ("a-b", None), ("", None)],
)
def test_windows_of_a_url(text: str, window: tuple[int, int] | None) -> None:
    assert parse_window(text) == window


EXPLAINED: dict[str, Any] = {
    "global_step": 40, "window_first_step": 8, "window_last_step": 39, "attempt": 2, "num_sequences": 64, "canonical": False,
    "loss": 3.25, "grad_norm": None, "shards_failed": 0, "num_sequences_hidden": 3,
    "spikes": step(40, 9.0, deviations=7)["spikes"],
    "rows": [
        {
            "address": "r/a2/s40/r0/m0/q1", "score": 12.3,
            "reasons": [
                {"feature": "repeated_share", "value": 0.75, "median": 0.01},
                {"feature": "loss", "value": "NaN", "median": 2.5},
            ],
        }
    ],
    "features": [{"name": "loss", "value": 3.0, "median": 2.0, "low": 1.5, "high": 2.5, "deviations": 6.04}],
    "source_rank": 0, "sources": [{"source": "w<b>", "share": 0.5, "window_share": 0.1}],
    "documents": [
        {"source": "web", "document_id": "d", "num_tokens_again": 9, "num_sequences": 2, "window_num_segments": 1}
    ],
    "ngrams": [
        {"token_ids": [1, 2], "text": None, "count": 9, "expected": 0.5, "num_sequences": 3},
        {"token_ids": [3], "text": " \n", "count": 8, "expected": 0.5, "num_sequences": 2},
    ],
}  # fmt: skip


def test_what_is_special_about_a_step() -> None:
    shown = read_html(explanation_html(PLACE, SAY, EXPLAINED))
    assert shown.texts("h2") == ["Step 40 against steps 8 to 39"]
    assert "attempt 2, 64 sequences, superseded: a later attempt took up from before it, loss 3.25" in shown.texts("p")
    assert "3 sequences are hidden, in part at least, and left out." in shown.texts("div", class_="warning")
    assert "tokens in 8-grams that repeat: 75%, in the middle of the window 1%" in shown.texts("li")
    assert "loss: NaN, in the middle of the window 2.5" in shown.texts("li")
    assert ["loss", "3", "2", "1.5 – 2.5", "6.04"] in shown.rows and ["w<b>", "50.0%", "10.0%"] in shown.rows
    assert "The sources differ from the window more than those of any of its steps." in shown.text
    assert shown.links["1 2"] == "search?run=r&q=ids%3A%5B1%202%5D" and "␣" in shown.links
    assert "9 tokens again, in 2 sequences of the step; 1 segments of the window" in shown.text


def test_a_step_with_nothing_special() -> None:
    nothing = {
        **EXPLAINED, "canonical": True, "num_sequences_hidden": 0, "spikes": [], "rows": [], "features": [], "sources": [],
        "documents": [], "ngrams": [],
    }  # fmt: skip
    shown = read_html(explanation_html(PLACE, SAY, nothing))
    assert shown.texts("h3") == ["Its sequences, the most unusual first"]
    assert "No sequence of the step is unusual." in shown.text
    some = read_html(explanation_html(PLACE, SAY, {**EXPLAINED, "source_rank": 0.25}))
    assert "The sources differ from the window as those of 25.0% of its steps do." in some.text


def test_numbers_that_are_none() -> None:
    assert (number(None), number("NaN"), number("over"), number(1234567)) == ("–", "nan", "over", "1.235e+06")
