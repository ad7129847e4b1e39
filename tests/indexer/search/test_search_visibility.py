"""What is hidden is in no hit, count, facet or score of a search: compared with a scan of what is left."""

import random
from dataclasses import replace

import pytest

from indexer.search.search import SearchOptions, search
from indexer.selection.rows import Selection
from indexer.selection.visibility import Visibility
from tests.indexer.search.conftest import Searched
from tests.indexer.search.oracle import Scanned
from train_hooks.export_format.records import SequenceAddress

QUERIES = ("the", "a OR の", "-the", "source:tatoeba-ja の", "언어 OR 语言")


def is_visible(one: Scanned, visibility: Visibility) -> bool:
    """Whether nothing of the segment is hidden, by the rules in words."""
    source, address, begin = one.source or "", SequenceAddress.parse(one.key[0]), one.key[1]
    touched = [
        (start, end)
        for of, start, end in visibility.hidden_spans
        if of == address and start < begin + len(one.tokens) and end > begin
    ]
    return (
        (visibility.sources is None or source in visibility.sources)
        and source not in visibility.hidden_sources
        and address not in visibility.hidden_rows
        and (one.source, one.document) not in visibility.hidden_documents
        and not touched
    )


def visibilities(scanned: list[Scanned]) -> list[Visibility]:
    chance = random.Random(3)
    some = chance.sample(scanned, 40)
    named = [one for one in some if one.source is not None and one.document is not None]
    documents = frozenset((one.source, one.document) for one in named[:8] if one.source and one.document)
    rows: frozenset[SequenceAddress] = frozenset(SequenceAddress.parse(one.key[0]) for one in some[8:20])
    spans = frozenset(
        (SequenceAddress.parse(one.key[0]), one.key[1] + 1, one.key[1] + 2) for one in some[20:] if len(one.tokens) > 3
    )
    return [
        Visibility(sources=frozenset(["tatoeba-ja", "korean"])),
        Visibility(sources=frozenset(["", "devils-dictionary"])),
        Visibility(sources=frozenset()),
        Visibility(hidden_sources=frozenset(["devils-dictionary", "chinese"])),
        Visibility(hidden_sources=frozenset([""])),
        Visibility(hidden_documents=documents),
        Visibility(hidden_rows=rows, hidden_spans=spans),
        Visibility(
            sources=frozenset(["tatoeba-ja", "devils-dictionary"]), hidden_rows=rows, hidden_documents=documents
        ),
    ]


@pytest.mark.parametrize("query", QUERIES)
def test_a_search_finds_what_is_visible(searched: Searched, query: str) -> None:
    everything = Selection(lineage="all")
    whole = search(searched.reader, query, SearchOptions(selection=everything, limit=1000))
    by_place = {one.key: one for one in searched.scanned}
    found = [by_place[str(hit.address), hit.start] for hit in whole.hits]
    assert whole.count == len(found) > 5
    hidden = 0
    for visibility in visibilities(searched.scanned):
        selection = replace(everything, visibility=visibility)
        seen = search(searched.reader, query, SearchOptions(selection=selection, limit=1000, facets=True))
        expected = {one.key for one in found if is_visible(one, visibility)}
        assert {by_place[str(hit.address), hit.start].key for hit in seen.hits} == expected
        assert seen.count == len(expected)
        assert seen.facets is not None
        sources = [one.source for one in found if one.source and is_visible(one, visibility)]
        assert {bucket.value: bucket.count for bucket in seen.facets.sources} == {
            source: sources.count(source) for source in set(sources)
        }
        hidden += len(found) - len(expected)
    assert hidden > 10


def test_scores_do_not_tell_of_hidden_segments(searched: Searched) -> None:
    """How rare a word is, is counted among what is visible."""
    selection = Selection(lineage="all", visibility=Visibility(sources=frozenset(["devils-dictionary"])))
    rare, everywhere = "で", "the"
    scores = [
        search(searched.reader, word, SearchOptions(selection=chosen, limit=1)).hits[0].score
        for word in (everywhere,)
        for chosen in (Selection(lineage="all"), selection)
    ]
    assert scores[0] != scores[1]
    assert search(searched.reader, rare, SearchOptions(selection=selection)).count == 0
