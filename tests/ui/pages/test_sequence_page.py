"""The sequence page: the text or the tokens of one sequence, its facts, and the way to its neighbours."""

import pytest

from tests.support.opened_page import open_page

ADDRESS = "pages/a1/s3/r0/m0/q1"


@pytest.mark.usefixtures("one_run")
def test_without_an_address_it_says_where_to_get_one() -> None:
    assert "Every packed sequence has an address." in open_page("sequence").text


@pytest.mark.usefixtures("one_run")
def test_a_sequence_with_its_segments() -> None:
    page = open_page("sequence", address=ADDRESS, at="20-24")
    assert page.html.texts("span", class_="mono")[0] == ADDRESS
    facts = dict(zip(page.html.texts("dt"), page.html.texts("dd"), strict=True))
    assert facts["where"] == "run pages, attempt 1, step 3, data-parallel rank 0, micro-batch 0, slot 1"
    assert facts["loss mask"] == "120 of 128 labels count (from the recorded labels); the others are struck out below"
    assert page.html.named("mark", id="at") and page.html.named("del", class_="out")
    [snippet] = page.html.texts("pre")
    assert "attempt=1, dp_rank=0, first_step=3, last_step=3" in snippet and f"# {ADDRESS}" in snippet


@pytest.mark.usefixtures("one_run")
def test_the_ways_from_it() -> None:
    page = open_page("sequence", address="pages/a1/s1/r0/m0/q0")
    assert "nothing before it in this attempt" in page.text
    page.click("next on this rank ▸")
    assert page.params == {"address": "pages/a1/s1/r0/m0/q1"}
    page.click("◂ sequence before, on this rank")
    assert page.params == {"address": "pages/a1/s1/r0/m0/q0"}
    assert page.click("step 1").page == "steps"


@pytest.mark.usefixtures("one_run")
def test_token_by_token() -> None:
    page = open_page("sequence", address=ADDRESS, at="20-24")
    page.app.segmented_control[0].set_value("tokens")
    page.run()
    assert page.params["show"] == "tokens"
    tokens = page.html.named("span", class_="tok")
    assert len(tokens) == 128 and tokens[0].attributes["title"].startswith("token 0, id ")
    assert [at for at, token in enumerate(tokens) if "on" in token.attributes["class"].split()] == [20, 21, 22, 23]
    page.app.segmented_control[0].set_value("text")
    assert "show" not in page.run().params


@pytest.mark.usefixtures("one_run")
def test_an_address_that_is_not_there() -> None:
    page = open_page("sequence", address=ADDRESS)
    page.fill("in_sequence_address", "pages/a1/s9999/r0/m0/q0").run()
    assert "No such sequence is in the index." in page.problem
    assert "no address" not in open_page("sequence", address="nonsense").text


@pytest.mark.usefixtures("two_runs")
def test_a_run_without_a_tokenizer_shows_ids() -> None:
    page = open_page("sequence", address="plain/a1/s2/r0/m0/q1")
    assert page.html.texts("span", class_="tok") == [str(token) for token in range(9, 17)]
    assert "of no known document · tokens 0–7" in page.text and "loss mask" not in page.text
    assert page.tabs["Search"] == "run=plain"
