"""Queries → records, and where a query that is none goes wrong. The documented examples parse."""

import re
from pathlib import Path

import pytest

from indexer.search.query import parse
from indexer.search.query.lexer import FIELDS, MAX_QUERY_CHARACTERS
from indexer.search.query.parser import MAX_CLAUSES, MAX_DEPTH, MAX_EXPANDED, MAX_SLOP
from indexer.search.query.patterns import MAX_PHRASE_TERMS
from indexer.search.query.records import And, Fuzzy, Ids, Ngram, Node, Not, NumberRange, Or, Phrase, Prefix, Value, Word
from train_hooks.export_format.errors import QueryError, QuerySyntaxError

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "query_language.md"
A, B, C = Word(text="a"), Word(text="b"), Word(text="c")


@pytest.mark.parametrize(
    ("query", "node"),
    [
        ("a b c", And(children=(A, B, C))),
        ("a AND b c", And(children=(A, B, C))),
        ("a b OR c", Or(children=(And(children=(A, B)), C))),
        ("a (b OR c)", And(children=(A, Or(children=(B, C))))),
        ("a OR b OR c", Or(children=(A, B, C))),
        ("-a b", And(children=(Not(child=A), B))),
        ("NOT NOT a", A),
        ("NOT -a", A),
        ("-(a b)", Not(child=And(children=(A, B)))),
        ("+a", A),
        ("and or not", And(children=(Word(text="and"), Word(text="or"), Word(text="not")))),
        ("well-known a-", And(children=(Word(text="well-known"), Word(text="a-")))),
        ('"a \\"b\\" \\\\c"', Phrase(text='a "b" \\c')),
        ('"a b"~3 c', And(children=(Phrase(text="a b", slop=3), C))),
        ("a* b~ c~2", And(children=(Prefix(text="a"), Fuzzy(text="b", distance=1), Fuzzy(text="c", distance=2)))),
        ("text:a text:a* text:AND", And(children=(A, Prefix(text="a"), Word(text="AND")))),
        ("ids:[1, 2 3] ids:4", And(children=(Ids(token_ids=(1, 2, 3)), Ids(token_ids=(4,))))),
        ('ngram:"x += 1" ngram:(', None),
        ('ngram:"x += 1"', Ngram(text="x += 1")),
        (
            'source:web document:"a b"',
            And(children=(Value(name="source", value="web"), Value(name="document", value="a b"))),
        ),
        ("source:a:b-c*d~", Value(name="source", value="a:b-c*d~")),
        ("step:5", NumberRange(name="step", low=5, high=6)),
        ("step:5..9", NumberRange(name="step", low=5, high=9)),
        ("step:..9", NumberRange(name="step", low=None, high=9)),
        ("step:5..", NumberRange(name="step", low=5, high=None)),
        ("dp_rank:>=5", NumberRange(name="dp_rank", low=5, high=None)),
        ("dp_rank:>5", NumberRange(name="dp_rank", low=6, high=None)),
        ("attempt:<5", NumberRange(name="attempt", low=None, high=5)),
        ("attempt:<=5", NumberRange(name="attempt", low=None, high=6)),
        ("全文検索　全文", And(children=(Word(text="全文検索"), Word(text="全文")))),
    ],
)
def test_what_a_query_says(query: str, node: Node | None) -> None:
    if node is None:
        with pytest.raises(QuerySyntaxError):
            parse(query)
    else:
        assert parse(query) == node


@pytest.mark.parametrize(
    ("query", "what", "position"),
    [
        ("a (b", "expected ) for this (", 2),
        ("a b)", "found ) without (", 3),
        ('a "b', "second quotation mark", 2),
        ("a AND", "found the end", 5),
        ("OR a", "found OR", 0),
        ("a OR OR b", "found OR", 5),
        ("()", "found )", 1),
        ("a wrong:b", f"no field 'wrong'; the fields are {', '.join(FIELDS)}", 2),
        ("http://x", "quote text that holds a colon", 0),
        ("a source:", "expected a value right after source:", 9),
        ("source: a", "expected a value right after source:", 7),
        ("a step:x", "expected numbers such as step:7", 7),
        ("step:..", "expected numbers", 5),
        ("step:99999999999999999999", "expected numbers up to", 5),
        ('step:"5"', "expected numbers", 5),
        ("step:٣", "expected numbers", 5),
        ("ids:[1 x]", "expected token ids such as", 4),
        ("ids:[]", "at least one token id", 4),
        ("ids:[1", "closing bracket", 4),
        ("ids:[-1]", "expected token ids such as", 4),
        ("text:[1]", "without brackets", 5),
        ("a*b", "* at the end of a word", 0),
        ("*", "* at the end of a word", 0),
        ("a~3", "~1 or ~2", 0),
        ("a~0", "~1 or ~2", 0),
        ('"a b"~', "a number after ~", 5),
        (f'"a b"~{MAX_SLOP + 1}', "slop of at most", 5),
        ('source:"a"~2', "no ~ after a value", 10),
        ("--a", "right after -", 1),
        ("a +-b", "right after +", 3),
        ("(" * (MAX_DEPTH + 1) + "a", "deep", MAX_DEPTH),
        ("a " * (MAX_CLAUSES + 1), "clauses", 2 * MAX_CLAUSES),
        ("a* " * MAX_EXPANDED + "a~1", "prefixes, fuzzy words", 3 * MAX_EXPANDED),
    ],
)
def test_errors_show_the_place(query: str, what: str, position: int) -> None:
    with pytest.raises(QuerySyntaxError, match=re.escape(what)) as caught:
        parse(query)
    assert caught.value.position == position and caught.value.query == query
    _, line, caret = str(caught.value).split("\n")
    assert caret.strip() == "^"
    shown = caret.index("^") - 2
    expected = (query + " ")[position]
    assert (line + " ")[2 + shown] == expected


def test_the_caret_stands_under_wide_characters_and_long_lines() -> None:
    with pytest.raises(QuerySyntaxError) as caught:
        parse("全文 wrong:x")
    assert str(caught.value).endswith("  全文 wrong:x\n  \u3000\u3000 ^")
    with pytest.raises(QuerySyntaxError) as caught:
        parse("first line\n" + "x." * 100 + " " + "\x1b[31m\u202e )" + " y" * 100)
    _, line, caret = str(caught.value).split("\n")
    assert len(line) < 80 and line[caret.index("^")] == ")" and "\x1b" not in line and "\u202e" not in line


def test_a_query_as_a_whole() -> None:
    for query in ("", " \n\u3000"):
        with pytest.raises(QuerySyntaxError, match="found none") as caught:
            parse(query)
        assert caught.value.position is None
    with pytest.raises(QuerySyntaxError, match="at most 10,000 characters"):
        parse("a" * (MAX_QUERY_CHARACTERS + 1))


def test_documented_queries_parse_and_documented_limits_are_these() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text[text.index("| write |") : text.index("`AND`, `OR`, `NOT` are written in capitals")]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    queries = [query for cell in cells for query in re.findall(r"`([^`]+)`", cell)]
    assert len(queries) >= 20
    for query in queries:
        if query != "~2":
            parse(query)
    for query in re.findall(r"kiseki search RUN (?:-- )?'([^']+)'", text):
        parse(query)
    for field in FIELDS:
        assert f"{field}:" in text
    for limit in (MAX_QUERY_CHARACTERS, MAX_DEPTH, MAX_CLAUSES, MAX_EXPANDED, MAX_PHRASE_TERMS):
        assert f"| {limit:,} |" in text


@pytest.mark.parametrize("error", [QueryError, ValueError])
def test_a_syntax_error_is_bad_input(error: type[Exception]) -> None:
    with pytest.raises(error):
        parse("(")
