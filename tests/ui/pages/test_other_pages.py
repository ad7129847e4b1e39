"""The documents, SQL and runs pages; the line at the top of each page; and an API that does not answer."""

import socket

import pytest

from tests.support.opened_page import open_page
from tests.support.pages_run import HOSTILE, PagesRun
from tests.ui.pages.conftest import ask
from ui.html.texts import JAPANESE

SOURCE, DOCUMENT = f"hostile{HOSTILE[0]}", f"0{HOSTILE[0]}"


@pytest.mark.usefixtures("one_run")
def test_a_document_and_its_exposures() -> None:
    page = open_page("documents", source=SOURCE, document=DOCUMENT)
    assert page.html.texts("h2")[0] == f"{SOURCE} / {DOCUMENT}"
    assert page.html.texts("div", class_="quote")[0].startswith("begin 0: <script>")
    assert "100% of the tokens up to the last one that was seen." in page.text
    assert page.go(page.html.named("a")[0].attributes["href"]).page == "sequence"


@pytest.mark.usefixtures("one_run")
def test_all_exposures_of_a_source_page_by_page() -> None:
    page = open_page("documents").fill("in_documents_source", "devils-dictionary").run()
    first = page.html.texts("div", class_="hit")
    if "next page" in page.html.links:
        page.click("next page")
        assert page.html.texts("div", class_="hit") != first
        assert page.click("first page").html.texts("div", class_="hit") == first


@pytest.mark.usefixtures("one_run")
def test_documents_that_are_not_there() -> None:
    assert "Name a document by its source and id" in open_page("documents").text
    page = open_page("documents", source=SOURCE, document="nope")
    assert "No exposure of such a document is in the selected steps." in page.problem
    assert open_page("documents", source=SOURCE, first="9", last="3").problem == (
        "The range begins at step 9, after its end, step 3."
    )
    page = open_page("documents", source=SOURCE, document=DOCUMENT, cursor="bad")
    assert page.problem and "first page" in page.html.links


def test_sql_by_a_ready_made_question_and_by_hand(one_run: PagesRun) -> None:
    page = open_page("sql")
    assert "Choose a question above, or write one." in page.text
    page.click("Loss and learning rate by step")
    assert page.html.texts("h2", data_test="rows") == [f"{one_run.last_step} rows"]
    assert page.html.texts("h3") == ["loss over global_step", "lr over global_step"]
    page.fill("in_sql", "SELECT 1 AS a WHERE false").press("Ask")
    assert page.params == {"sql": "SELECT 1 AS a WHERE false"} and "The query has no rows." in page.text
    page.fill("in_sql", "SELECT address, document_id, source, NULL AS n FROM segments LIMIT 1").press("Ask")
    [address, document, *_] = page.html.rows[1]
    assert page.html.links[address].startswith("sequence?address=") and document in page.html.links
    page.fill("in_sql", "SELEC").press("Ask")
    assert "SELEC" in page.problem
    assert open_page("sql", canned="gaps").downloads == ["Download CSV", "Download Parquet"]


@pytest.mark.usefixtures("two_runs")
def test_a_server_without_sql_says_how_it_is_turned_on() -> None:
    page = open_page("sql", canned="loss", run="pages")
    assert "`kiseki serve RUN --sql`" in page.html.texts("div", class_="warning")[0]


@pytest.mark.usefixtures("two_runs")
def test_the_runs_page() -> None:
    page = open_page("runs", run="pages")
    assert page.html.texts("h2")[0] == "Run pages"
    assert "Complete: every step up to the last indexed one is here, and nothing was left out." in page.text
    assert [label for label in page.html.links if label.startswith("attempt 1, ")] == [
        label for label in page.html.links if "attempt 1, steps" in label
    ]
    page.click("plain")
    assert page.params == {"run": "plain"} and page.html.texts("h2")[0] == "Run plain"


@pytest.mark.usefixtures("two_runs")
def test_the_run_that_is_chosen_stays_and_the_language() -> None:
    page = open_page("search", run="pages", q="begin", lang="ja")
    assert page.tabs["ラン"] == "run=pages&lang=ja" and page.tabs["English"] == "run=pages&q=begin"
    page.app.selectbox[0].set_value("plain")
    page.run()
    assert page.params == {"q": "begin", "lang": "ja", "run": "plain"}
    assert page.tabs[JAPANESE["Trace"]] == "run=plain&lang=ja"


@pytest.mark.usefixtures("two_runs")
def test_a_run_that_is_not_here() -> None:
    page = open_page("runs", run="nope")
    assert "There is no such run here" in page.problem
    assert page.app.selectbox[0].options == ["pages", "plain"]


@pytest.mark.usefixtures("one_run")
def test_a_link_that_leads_out_of_the_pages_does_nothing() -> None:
    page = open_page("runs")
    assert page.go("https://elsewhere.example/").page == "runs" and page.params == {}


@pytest.mark.usefixtures("one_run")
def test_an_unknown_language_is_english() -> None:
    assert open_page("runs", lang="xx").html.texts("h2")[0] == "Run pages"


def test_an_api_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and never listens: connections are refused
        ask(f"http://127.0.0.1:{nobody.getsockname()[1]}", monkeypatch)
        page = open_page("trace", text="a")
    assert "The API does not answer." in page.problem and "`kiseki serve` is still running" in page.problem
