"""The search page: what is found, page by page; what narrows it; and queries that cannot be read."""

import pytest

from tests.support.opened_page import open_page


@pytest.mark.usefixtures("one_run")
def test_without_a_query_it_shows_what_can_be_asked() -> None:
    page = open_page("search")
    assert "Write a query above to find the segments that the model was trained on." in page.text
    page.click("diverg*")
    assert page.params == {"q": "diverg*"}


@pytest.mark.usefixtures("one_run")
def test_segments_page_by_page() -> None:
    page = open_page("search").fill("in_search_q", "begin").press("Search")
    assert page.params == {"q": "begin"}
    [count] = page.html.texts("h2", data_test="count")
    assert count.startswith("Segments 1 to 10 of ") and len(page.html.named("div", class_="hit")) == 10
    assert "begin" in page.html.texts("mark")
    page.click("next page")
    assert page.html.texts("h2", data_test="count")[0].startswith("Segments 11 to 20 of ")
    page.click("first page")
    assert page.html.texts("h2", data_test="count") == [count]


@pytest.mark.usefixtures("one_run")
def test_a_source_narrows_it_and_back() -> None:
    page = open_page("search", q="step:>=0")
    page.click("tatoeba-ja")
    assert page.params["source"] == "tatoeba-ja" and page.html.texts("span", class_="on") == ["tatoeba-ja"]
    assert all("tatoeba-ja / " in text for text in page.html.texts("div", class_="hit"))
    page.click("All sources")
    assert "source" not in page.params


@pytest.mark.usefixtures("one_run")
def test_a_bar_narrows_the_steps_and_back() -> None:
    page = open_page("search", q="step:>=0")
    bar = next(text for text in page.html.links if text.startswith("steps "))
    page.click(bar)
    assert {"first", "last"} <= set(page.params)
    page.click("Show all steps")
    assert not {"first", "last"} & set(page.params)


@pytest.mark.usefixtures("one_run")
def test_the_order_stands_in_the_url() -> None:
    page = open_page("search", q="begin", n="10")
    page.app.selectbox[0].set_value("step_desc")
    assert page.run().params == {"q": "begin", "sort": "step_desc"}
    page.app.selectbox[0].set_value("relevance")
    assert page.run().params == {"q": "begin"}


@pytest.mark.usefixtures("one_run")
def test_what_finds_nothing() -> None:
    assert "No segment matches in the selected steps." in open_page("search", q="qqqzzz").text


@pytest.mark.usefixtures("one_run")
def test_queries_and_ranges_that_cannot_be() -> None:
    page = open_page("search", q="((")
    assert "This query cannot be read." in page.problem and "^" in page.html.texts("pre")[0]
    assert open_page("search", q="a", first="9", last="3").problem == (
        "The range begins at step 9, after its end, step 3."
    )
    page = open_page("search", q="begin", cursor="bad")
    assert "no longer knows" in page.problem
    assert page.click("first page").html.texts("h2", data_test="count")
