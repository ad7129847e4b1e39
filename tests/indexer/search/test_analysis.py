"""What a term is: the same by a second, slower rule; and every term knows its place."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.fulltext.terms import located_terms, spaced_terms, terms_of
from tests.conftest import read_documents
from tests.indexer.search.oracle import folded, terms_by_hand

SCRIPTS = st.sampled_from(
    [chr(code) for ranges in (
        (0x20, 0x17F), (0x300, 0x370), (0x390, 0x3D0), (0x400, 0x460), (0x5D0, 0x5EA), (0x620, 0x660), (0x900, 0x97F),
        (0xE01, 0xE5B), (0x1100, 0x1200), (0x1780, 0x17B3), (0x2000, 0x2050), (0x2150, 0x2190), (0x2460, 0x24FF),
        (0x3000, 0x30FF), (0x3105, 0x312F), (0x3131, 0x318E), (0x4E00, 0x4F00), (0xAC00, 0xAD00), (0xFB00, 0xFB07),
        (0xFE00, 0xFE10), (0xFF01, 0xFFDC), (0x1F600, 0x1F640), (0x20000, 0x20100), (0xE0100, 0xE0110),
    ) for code in range(*ranges)]
)  # fmt: skip
TEXTS = st.one_of(
    st.text(SCRIPTS, max_size=30), st.text(max_size=30), st.text(st.characters(max_codepoint=127), max_size=60)
)


@settings(max_examples=400, deadline=None)
@given(text=st.text(SCRIPTS, max_size=30))
def test_terms_are_those_of_the_second_rule(text: str) -> None:
    assert terms_of(text) == terms_by_hand(text)
    assert [term for term in spaced_terms(text).split(" ") if term] == terms_by_hand(text)


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_every_term_comes_from_its_place(text: str) -> None:
    located = located_terms(text)
    assert located.terms == terms_of(text)
    assert len(located.starts) == len(located.ends) == len(located.terms)
    for term, start, end in zip(located.terms, located.starts.tolist(), located.ends.tolist(), strict=True):
        assert 0 <= start < end <= len(text) and term in folded(text[start:end])
    assert (located.starts[1:] >= located.starts[:-1]).all()


@pytest.mark.parametrize(
    "source", ["devils-dictionary", "go-stdlib", "apache-httpd-docs-ja", "tatoeba-ja", "moby-dick"]
)
def test_real_text(source: str) -> None:
    for text in read_documents(source, 3).values():
        assert terms_of(text[:20_000]) == terms_by_hand(text[:20_000])


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("snake_case camelCase HTTPServer utf8", ["snake", "case", "camelcase", "httpserver", "utf8"]),
        ("don't — 3.14, 1,000", ["don", "t", "3", "14", "1", "000"]),
        ("全文検索エンジン", list("全文検索エンジン")),
        ("ＡＢＣ　１２ ｶﾞｷﾞ ①", ["abc", "12", "ガ", "ギ", "1"]),
        ("café CAFE\u0301 straße ﬁn", ["café", "café", "strasse", "fin"]),
        ("학교에서 배운", list("학교에서배운")),
        ("हिन्दी ไทย", ["हिन्दी", *"ไทย"]),
        ("葛\U000e0100城 ❤\ufe0f", ["葛", "城"]),
        ("人々 〇 ラーメン ヶ", list("人々〇ラーメンヶ")),
        ("a\x00b \ufffd \ud800", ["a", "b"]),
        ("", []),
    ],
)
def test_examples(text: str, terms: list[str]) -> None:
    assert terms_of(text) == terms == located_terms(text).terms
