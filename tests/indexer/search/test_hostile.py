"""Queries that mean harm: each is an answer or a QueryError, soon, and the process lives."""

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.search.search import SearchOptions, search
from indexer.selection.rows import Selection
from tests.indexer.search.conftest import Searched
from train_hooks.export_format.errors import QueryError

MAX_CPU_S = 1.0
"""An answer takes some milliseconds, a bomb takes minutes; processor time, so that a busy machine changes nothing."""
CASES = {
    "nothing": "",
    "white space alone": " \t\n\u3000\u00a0",
    "10,000 opening parentheses": "(" * 10_000,
    "10,000 balanced parentheses": "(" * 5_000 + ")" * 5_000,
    "as deep as allowed": "(" * 32 + "the" + ")" * 32,
    "one deeper": "(" * 33 + "the" + ")" * 33,
    "parentheses far beyond the length": "(" * 1_000_000,
    "2,500 NOTs": "NOT " * 2_499 + "the",
    "signs without end": "-" * 9_999,
    "9,999 pluses and a word": "+" * 9_990 + "a",
    "minus and NOT by turns": "NOT -" * 1_900 + "the",
    "10,000 clauses": " OR ".join(["a"] * 10_000),
    "as many clauses as allowed": " OR ".join(f"w{i}" for i in range(64)),
    "64 times a common word": " ".join(["the"] * 64),
    "64 prefixes of one letter": " OR ".join(f"{chr(97 + i % 26)}*" for i in range(64)),
    "8 prefixes of one letter": " OR ".join(f"{letter}*" for letter in "abcdepst"),
    "64 fuzzy words": " ".join(f"wisdom{i}~2" for i in range(64)),
    "8 fuzzy words": " OR ".join(f"wisdom{i}~2" for i in range(8)),
    "64 phrases": " OR ".join(f'"of the"~{slop % 20}' for slop in range(64)),
    "64 negations": " ".join(["-the"] * 64),
    "a phrase of 256 words": '"' + " ".join(["the"] * 256) + '"',
    "a phrase of 256 words with slop": '"' + " ".join(["the", "of"] * 128) + '"~20',
    "8 phrases of 6 words with slop": " OR ".join(f'"the of the of the of"~{slop}' for slop in range(13, 21)),
    "a phrase of 3,000 words": '"' + "a " * 3_000 + '"',
    "a phrase of one word": '"the"',
    "a phrase of one word with slop": '"the"~5',
    "an empty phrase": '""',
    "a phrase of punctuation": '"!!! ... ???"',
    "a slop without end": '"of the"~999999999',
    "a slop of many digits": '"of the"~' + "9" * 5_000,
    "a word of 9,999 letters": "a" * 9_999,
    "a word of 70,000 letters": "a" * 70_000,
    "a word of 255 letters": "a" * 255,
    "a fuzzy word of 255 letters": "a" * 255 + "~2",
    "a prefix of 255 letters": "a" * 255 + "*",
    "a word of 9,999 kanji": "検" * 9_999,
    "a phrase of 256 kanji": "の" * 256,
    "a star alone": "*",
    "stars": "*" * 5_000,
    "every word": "a* OR b* OR c* OR s* OR t*",
    "a fuzzy letter": "a~2",
    "distance 9": "wisdom~9",
    "distance of many digits": "wisdom~" + "1" * 5_000,
    "a regular expression": "/(a+)+$/",
    "a regular expression as a prefix": "(.*)*x* .*",
    "a regular expression behind a word": "the_.*",
    "NUL": "the\x00of \x00",
    "NUL in a phrase": '"the\x00of"',
    "bidirectional controls": "\u202ethe\u202c \u2066of\u2069",
    "escape sequences": "\x1b[31mthe\x1b[0m \x07",
    "half a character": "the \ud800",
    "combining marks without end": "a" + "\u0301" * 9_000,
    "characters that fold to many": "\ufdfa" * 3_000,
    "emoji": "🙂 👩‍👩‍👧 ❤️",
    "unassigned": "\U000e0fff\U0010ffff\u0378",
    "ids beyond the vocabulary": "ids:[99999999]",
    "ids of many digits": "ids:[" + "9" * 5_000 + "]",
    "256 ids": "ids:[" + " ".join(["300"] * 256) + "]",
    "3,000 ids": "ids:[" + "5 " * 3_000 + "]",
    "negative ids": "ids:[-1]",
    "an n-gram of nothing": 'ngram:""',
    "an n-gram of white space": 'ngram:"        "',
    "an n-gram of 9,000 letters": 'ngram:"' + "ab " * 3_000 + '"',
    "64 n-grams": " OR ".join(f"ngram:{letter}" for letter in "abcdefghijklmnopqrstuvwxyz" * 2 + "ABCDEFGHIJKL"),
    "a step of many digits": "step:" + "9" * 5_000,
    "all steps": "step:0..9223372036854775807",
    "steps the wrong way round": "step:9..3",
    "steps beyond the numbers": "step:>9223372036854775807",
    "below nothing": "step:<0 OR dp_rank:<0 OR attempt:<0",
    "a source of 9,000 letters": "source:" + "x" * 9_000,
    "a source of quotation marks": 'source:"\\"\\"\\\\"',
    "field of a field": "source:source:source:",
    "a field of the engine": "token_ids:5",
    "a colon": ":",
    "colons": ":" * 9_000,
    "brackets": "[" * 9_000,
    "quotation marks": '"' * 9_000,
    "backslashes": '"' + "\\" * 9_000 + '"',
    "SQL": "'; DROP TABLE steps; --",
    "everything but everything": "-(-(-the) -(the OR -the))",
}


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_an_answer_or_a_query_error_soon(searched: Searched, name: str) -> None:
    tokens = np.concatenate([searched.reader.shards[0].tokens(ordinal) for ordinal in range(20)])
    search(searched.reader, f"the ids:{np.bincount(tokens).argmax()}", SearchOptions(facets=True))
    search(searched.reader, f"ids:[{tokens[3]} {tokens[4]}]")  # what is loaded or compiled once is so
    for options in (
        SearchOptions(selection=Selection(lineage="all"), facets=True),
        SearchOptions(limit=0, selection=Selection(source="x\x00", document_id="\u202e")),
        SearchOptions(limit=1000, sort="step_desc"),
    ):
        started, refused = time.process_time(), ""
        try:
            result = search(searched.reader, CASES[name], options)
            assert result.shards_failed == 0 and result.count >= len(result.hits)
        except QueryError as error:
            refused = str(error)
        assert time.process_time() - started < MAX_CPU_S
        assert len(refused) < 700 and not any(ord(character) < 32 and character != "\n" for character in refused)
    assert search(searched.reader, "the").count > 0, "the process, the index and the reader live"


def test_selections_that_mean_harm(searched: Searched) -> None:
    for selection in (
        Selection(source="\ud800"),
        Selection(document_id="x" * 100_000),
        Selection(first_step=1 << 70),
        Selection(dp_rank=1 << 70),
        Selection(before_step=1 << 70),
    ):
        try:
            search(searched.reader, "the", SearchOptions(selection=selection))
        except QueryError:
            continue
    assert search(searched.reader, "the").count > 0


PIECES = st.one_of(
    st.sampled_from([
        "(", ")", '"', "\\", "*", "~", "~1", "~2", "+", "-", " ", "AND ", "OR ", "NOT ", ":", "[", "]", "..", ">=", "<", "the",
        "検索", "é", "text:", "ids:", "ngram:", "source:", "document:", "step:", "dp_rank:", "attempt:", "status:", "1", "300 ",
    ]),
    st.text(max_size=3),
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(query=st.lists(PIECES, max_size=14).map("".join))
def test_any_text_is_answered_or_refused(searched: Searched, query: str) -> None:
    try:
        result = search(searched.reader, query, SearchOptions(limit=3, facets=True))
    except QueryError:
        return
    assert result.shards_failed == 0 and len(result.hits) == min(3, result.count)
