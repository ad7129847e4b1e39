"""The steps page: metrics with their spikes, the sources, one step explained, two windows compared."""

import pytest

from tests.support.opened_page import open_page
from tests.support.pages_run import PagesRun


def test_metrics_and_sources(one_run: PagesRun) -> None:
    page = open_page("steps")
    assert page.html.texts("h3") == ["loss", "learning rate", "gradient norm"]
    charts = [element.attributes["aria-label"] for element in page.html.named("svg")]
    last = one_run.last_step
    assert charts[0].startswith(f"loss over steps, from 1 to {last}; between ")
    assert charts[-1] == f"Share of the sources in the segments, over steps 1 to {last}"
    assert "Spikes, the strongest first" in page.text and "robust deviations above the expected" in page.text
    assert "Write the steps of two windows" in page.text
    source = next(row[0] for row in page.html.rows if row[0] == "devils-dictionary")
    assert page.click(source).params == {"q": 'source:"devils-dictionary"'}


@pytest.mark.usefixtures("one_run")
def test_a_range_without_a_spike() -> None:
    page = open_page("steps", first="2", last="9")
    assert "No step of this range has a loss or gradient norm far above those before it." in page.text


@pytest.mark.usefixtures("one_run")
def test_a_part_of_the_steps_becomes_a_window() -> None:
    page = open_page("steps")
    page.fill("in_steps_first", 5).run()
    page.fill("in_steps_last", 20).run()
    assert page.params == {"first": "5", "last": "20"}
    page.click("Take this range as window A")
    page.fill("in_steps_b", "21-30").run()
    heads = next(row for row in page.html.rows if row[-1] == "change")
    assert heads == ["", "steps 5 to 20", "steps 21 to 30", "change"]
    rows = {row[0]: row[1:] for row in page.html.rows}
    assert rows["median of the learning rate"] == ["0.001", "0.001", "+0.0%"] and rows["spikes"][2] == ""
    assert rows["segments of devils-dictionary"][2][0] in "+-"
    assert page.click("Show all steps").params == {"a": "5-20", "b": "21-30"}


@pytest.mark.usefixtures("one_run")
def test_a_step_and_what_is_special_about_it() -> None:
    page = open_page("steps", step="20")
    assert any(text.startswith("Step 20 against steps ") for text in page.html.texts("h2"))
    assert "Its sequences, the most unusual first" in page.text and "The step in the mean" in page.text
    assert page.html.named("line", class_="chosen")
    assert "step" not in page.click("close").params


@pytest.mark.usefixtures("one_run")
def test_steps_that_are_not_there() -> None:
    page = open_page("steps", step="9999")
    assert "9999" in page.problem
    assert "step" not in page.click("close").params
    assert open_page("steps", first="9", last="3").problem == "The range begins at step 9, after its end, step 3."
    assert "There is no step from 0 to 0. Choose a wider range." in open_page("steps", last="0").text
    assert open_page("steps", a="3-1", b="2-9").problem == "Expected steps such as 100-200, found 3-1."


@pytest.mark.usefixtures("one_run")
def test_a_rolled_back_attempt() -> None:
    page = open_page("steps")
    page.app.selectbox[0].set_value("1")
    page.run()
    assert page.params == {"attempt": "1"}
    page = open_page("steps", attempt="1", step="25", attempt_of="1")
    assert "superseded: a later attempt took up from before it" in page.text


@pytest.mark.usefixtures("one_run")
def test_windows_that_are_too_wide_or_fail() -> None:
    page = open_page("steps", a="1-5", b="900-999")
    rows = {row[0]: row[1:] for row in page.html.rows}
    assert rows["tokens"][1] == "0" and rows["median of the loss"] == [rows["median of the loss"][0], "–", ""]


@pytest.mark.usefixtures("two_runs")
def test_a_run_without_metrics() -> None:
    page = open_page("steps", run="plain")
    assert "The trainer recorded no loss, learning rate or gradient norm." in page.text
    assert ["other sources", "12", "100.0%"] in page.html.rows
