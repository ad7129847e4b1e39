"""What a search finds is what a scan of the decoded text finds: words, phrases, n-grams, substrings, combinations."""

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from indexer.search.records import SearchResult
from indexer.search.search import SearchOptions, search
from indexer.selection.rows import Selection
from tests.indexer.search.conftest import Searched, keys
from tests.indexer.search.oracle import Scanned, terms_by_hand

EVERY = Selection(lineage="all")
SOURCES = {"english": ("devils-dictionary", "python-stdlib"), "japanese": ("tatoeba-ja", "apache-httpd-docs-ja"),
           "korean": ("korean",), "chinese": ("chinese",)}  # fmt: skip


def found_keys(result: SearchResult) -> set[tuple[str, int]]:
    """The segments that are listed; all of them."""
    assert not result.truncated and result.count == len(result.hits) and result.count_relation == "eq"
    return {(str(hit.address), hit.start) for hit in result.hits}


def every_hit(searched: Searched, query: str, selection: Selection = EVERY) -> set[tuple[str, int]]:
    return found_keys(search(searched.reader, query, SearchOptions(selection=selection, limit=1000, sort="step")))


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def of_script(searched: Searched, script: str) -> list[Scanned]:
    return [one for one in searched.scanned if one.source in SOURCES[script] and len(one.text) > 20]


def test_the_corpus_is_worth_searching(searched: Searched) -> None:
    assert len(searched.reader.shards) >= 5 and len(searched.scanned) > 300
    assert any(one.source is None for one in searched.scanned)
    for script in SOURCES:
        assert len(of_script(searched, script)) > 12


@pytest.mark.parametrize("script", SOURCES)
def test_words_and_phrases_of_the_text_itself(searched: Searched, script: str) -> None:
    """120 stretches of text a script, cut at any character, as phrases and as bare words."""
    chance = random.Random(script)
    segments, asked = of_script(searched, script), 0
    while asked < 120:
        one = chance.choice(segments)
        begin = chance.randrange(len(one.text) - 2)
        piece = one.text[begin : begin + chance.choice((2, 4, 8, 20))]
        terms = terms_by_hand(piece)
        if not terms or "\ufffd" in piece:
            continue
        asked += 1
        expected = keys([other for other in searched.scanned if other.has_terms(terms)])
        query = (
            quoted(piece) if asked % 3 or any(c in piece for c in '"():*~+-') or " " in piece.strip() else piece.strip()
        )
        if any(space in query for space in "\n\t\u3000 ") and not query.startswith('"'):
            query = quoted(piece)
        assert every_hit(searched, query) == expected, query


@pytest.mark.parametrize("script", SOURCES)
def test_token_ngrams(searched: Searched, script: str) -> None:
    """60 n-grams a script, of 1 to 12 token ids."""
    chance = random.Random(script)
    segments = of_script(searched, script)
    for _ in range(60):
        one = chance.choice(segments)
        begin = chance.randrange(len(one.tokens))
        ids = one.tokens[begin : begin + chance.randint(1, 12)]
        expected = keys([other for other in searched.scanned if other.has_tokens(ids)])
        assert one.key in expected
        assert every_hit(searched, f"ids:[{' '.join(map(str, ids))}]") == expected


def test_japanese_substrings_of_two_to_eight_characters(searched: Searched) -> None:
    chance = random.Random(8)
    segments, asked = of_script(searched, "japanese"), 0
    while asked < 60:
        one = chance.choice(segments)
        begin = chance.randrange(len(one.text) - 8)
        piece = one.text[begin : begin + chance.randint(2, 8)]
        if not all("\u3040" <= character <= "\u9fff" for character in piece):
            continue
        asked += 1
        expected = keys([other for other in searched.scanned if piece in other.text])
        assert one.key in expected and every_hit(searched, piece) == expected


def test_text_ngrams_with_and_without_a_space(searched: Searched) -> None:
    chance = random.Random(3)
    segments = of_script(searched, "english")
    for _ in range(40):
        one = chance.choice(segments)
        words = one.text.split()[1:-1]
        begin = chance.randrange(max(1, len(words) - 3))
        text = " ".join(words[begin : begin + 2])
        if not text:
            continue
        variants = {tuple(searched.tokenizer.encode(start + text).ids) for start in ("", " ")}
        expected = keys([other for other in searched.scanned if any(map(other.has_tokens, variants))])
        assert every_hit(searched, f"ngram:{quoted(text)}") == expected


def test_prefixes_and_fuzzy_terms(searched: Searched) -> None:
    chance = random.Random(4)
    words = sorted({term for one in of_script(searched, "english") for term in one.terms if len(term) > 4})
    known = {term for one in searched.scanned for term in one.terms}
    for word in chance.sample(words, 20):
        prefix = word[: chance.randint(1, 4)]
        expected = keys([one for one in searched.scanned if any(term.startswith(prefix) for term in one.terms)])
        assert every_hit(searched, prefix + "*") == expected
        for distance in (1, 2):
            at = chance.randrange(len(word))
            typo = word[:at] + chance.choice(("", "x", word[at] + word[at])) + word[at + 1 :]
            like = {term for term in known if abs(len(term) - len(typo)) <= distance and set(typo) & set(term)}
            near = {term for term in like if edits(typo, term) <= distance}
            expected = keys([one for one in searched.scanned if near & set(one.terms)])
            assert every_hit(searched, f"{typo}~{distance}") == expected


def edits(one: str, other: str) -> int:
    """Optimal string alignment distance, by its definition."""
    table = {(i, 0): i for i in range(len(one) + 1)} | {(0, j): j for j in range(len(other) + 1)}
    for i, j in itertools.product(range(1, len(one) + 1), range(1, len(other) + 1)):
        costs = [table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (one[i - 1] != other[j - 1])]
        if i > 1 and j > 1 and one[i - 1] == other[j - 2] and one[i - 2] == other[j - 1]:
            costs.append(table[i - 2, j - 2] + 1)
        table[i, j] = min(costs)
    return table[len(one), len(other)]


def test_slop_of_two_terms(searched: Searched) -> None:
    """Two terms, the second one at most `slop` positions from right behind the first."""
    chance = random.Random(6)
    for _ in range(40):
        one = chance.choice(of_script(searched, "english"))
        first, second = chance.choice(one.terms), chance.choice(one.terms)
        slop = chance.randint(1, 6)
        expected = [
            other
            for other in searched.scanned
            if any(
                abs(j - i - 1) <= slop
                for i, term in enumerate(other.terms)
                if term == first
                for j, after in enumerate(other.terms)
                if after == second
            )
        ]
        assert every_hit(searched, f'"{first} {second}"~{slop}') == keys(expected)


def test_slop_of_more_terms_keeps_phrases_and_stays_near(searched: Searched) -> None:
    """The phrase itself is always found; whatever is found has all terms within reach of each other."""
    chance = random.Random(9)
    for _ in range(30):
        one = chance.choice(of_script(searched, "english"))
        length, slop = chance.randint(3, 6), chance.randint(1, 8)
        at = chance.randrange(max(1, len(one.terms) - length))
        terms = one.terms[at : at + length]
        if len(terms) < length:
            continue
        found = every_hit(searched, f'"{" ".join(terms)}"~{slop}')
        assert keys([other for other in searched.scanned if other.has_terms(terms)]) <= found
        reach = length + 2 * slop
        windows = keys([
            other
            for other in searched.scanned
            if any(set(terms) <= set(other.terms[max(0, i - reach) : i + reach]) for i in range(len(other.terms)))
        ])  # fmt: skip
        assert found <= windows


def test_a_prefix_behind_other_terms(searched: Searched) -> None:
    chance = random.Random(7)
    for _ in range(20):
        one = chance.choice(of_script(searched, "english"))
        at = chance.randrange(max(1, len(one.terms) - 1))
        first, second = (*one.terms[at : at + 2], "x")[:2]
        expected = [
            other
            for other in searched.scanned
            if any(a == first and b.startswith(second[:2]) for a, b in itertools.pairwise(other.terms))
        ]
        assert every_hit(searched, f"{first}_{second[:2]}*") == keys(expected)


def test_filters_of_selection_and_of_query(searched: Searched) -> None:
    last = max(one.step for one in searched.canonical)
    word = "the"
    having = [one for one in searched.canonical if one.has_terms([word])]
    assert every_hit(searched, word, Selection()) == keys(having)
    for low, high in ((5, 20), (0, last + 1), (17, 18), (last, last + 50)):
        expected = keys([one for one in having if low <= one.step < high])
        assert every_hit(searched, f"{word} step:{low}..{high}", Selection()) == expected
        assert every_hit(searched, f"step:>={low} {word} step:<{high}", Selection()) == expected
        assert every_hit(searched, word, Selection(first_step=low, last_step=high - 1)) == expected
        assert every_hit(searched, word, Selection(first_step=low, before_step=high)) == expected
    for rank in (0, 1, 2):
        expected = keys([one for one in having if one.dp_rank == rank])
        assert every_hit(searched, f"{word} dp_rank:{rank}", Selection()) == expected
        assert every_hit(searched, word, Selection(dp_rank=rank)) == expected
    for source in ("devils-dictionary", "python-stdlib", "none"):
        expected = keys([one for one in having if one.source == source])
        assert every_hit(searched, f"{word} source:{source}", Selection()) == expected
        assert every_hit(searched, word, Selection(source=source)) == expected
    document = next(one.document for one in having if one.document)
    expected = keys([one for one in having if one.document == document])
    assert every_hit(searched, f'{word} document:"{document}"', Selection()) == expected
    assert every_hit(searched, word, Selection(document_id=document)) == expected
    for attempt in (1, 2):
        of_attempt = [one for one in searched.scanned if one.attempt == attempt]
        applied = keys([one for one in of_attempt if one.status == "applied" and one.has_terms([word])])
        assert every_hit(searched, word, Selection(attempt=attempt)) == applied
        assert every_hit(searched, f"attempt:{attempt}") == keys(of_attempt)
        expected = keys([one for one in having if one.attempt == attempt])
        assert every_hit(searched, f"{word} attempt:{attempt}", Selection()) == expected
    for status in ("applied", "skipped_update", "skipped_data", "rerun"):
        assert every_hit(searched, f"status:{status}") == keys(
            [one for one in searched.scanned if one.status == status]
        )


Question = tuple[str, Callable[[Scanned], bool]]
WORDS = ("the", "of", "and", "is", "a", "self", "検索", "の", "です", "모델", "数据", "nowhere")


def leaf() -> st.SearchStrategy[Question]:
    words = st.sampled_from(WORDS).map(lambda word: (word, lambda one: one.has_terms(terms_by_hand(word))))
    steps = st.tuples(st.integers(0, 60), st.integers(0, 40)).map(
        lambda p: (f"step:{p[0]}..{p[0] + p[1]}", lambda one: p[0] <= one.step < p[0] + p[1])
    )
    ranks = st.integers(0, 2).map(lambda rank: (f"dp_rank:{rank}", lambda one: one.dp_rank == rank))
    sources = st.sampled_from(("devils-dictionary", "korean")).map(
        lambda name: (f"source:{name}", lambda one: one.source == name)
    )
    ids = st.integers(0, 400).map(lambda token: (f"ids:{token}", lambda one: token in one.tokens))
    return st.one_of(words, words, steps, ranks, sources, ids)


def combined(inner: st.SearchStrategy[Question]) -> st.SearchStrategy[Question]:
    both = st.lists(inner, min_size=2, max_size=3)
    return st.one_of(
        both.map(lambda all_: (f"({' AND '.join(q for q, _ in all_)})", lambda one: all(f(one) for _, f in all_))),
        both.map(lambda all_: (f"({' '.join(q for q, _ in all_)})", lambda one: all(f(one) for _, f in all_))),
        both.map(lambda all_: (f"({' OR '.join(q for q, _ in all_)})", lambda one: any(f(one) for _, f in all_))),
        inner.map(lambda item: (f"-{item[0]}" if item[0][0] != "-" else f"-({item[0]})", lambda one: not item[1](one))),
        inner.map(lambda item: (f"NOT {item[0]}", lambda one: not item[1](one))),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(question=st.recursive(leaf(), combined, max_leaves=8))
def test_boolean_combinations_are_set_operations(searched: Searched, question: Question) -> None:
    query, holds = question
    expected = keys([one for one in searched.scanned if holds(one)])
    result = search(searched.reader, query, SearchOptions(selection=EVERY, limit=0))
    assert result.count == len(expected)
    if len(expected) < 60:
        assert every_hit(searched, query) == expected
