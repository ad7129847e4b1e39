"""Order, pages, counts, facets, snippets, and what an answer says of itself."""

import hashlib
import itertools
import json
import math
import os
import shutil
from pathlib import Path

import pytest

from indexer.answers.cursor import CursorError, decode_cursor, encode_cursor
from indexer.build.update import IndexOptions, update_index
from indexer.fulltext.engine import FullTextIndex
from indexer.limits import Sort
from indexer.reader import IndexReader
from indexer.search.records import SearchHit
from indexer.search.search import MAX_DEPTH_OF_PAGES, SearchOptions, search
from indexer.selection.rows import Selection
from indexer.storage.shard import SHARD_FORMAT
from indexer.trace.counts import count_of_ngram
from indexer.trace.ngrams import counts_by_shard
from tests.conftest import LENGTH, TextRun
from tests.indexer.search.conftest import Searched
from tests.indexer.search.oracle import scan, terms_by_hand
from tests.support.export_maker import MadeStep, all_rows, make_attempt
from train_hooks import Segment
from train_hooks.export_format.errors import IncompleteError, QueryError
from train_hooks.export_format.writing.attempts import RunSpec

EVERY = Selection(lineage="all")
QUERIES = ("the", "the OR of OR です", "-the", '"of the"', "の source:tatoeba-ja", "s*", "step:3..20")


def pages(reader: IndexReader, query: str, sort: Sort, limit: int) -> list[SearchHit]:
    """All pages, one after the other."""
    hits: list[SearchHit] = []
    cursor = None
    while True:
        result = search(reader, query, SearchOptions(selection=EVERY, sort=sort, limit=limit, cursor=cursor))
        hits += result.hits
        cursor = result.next_cursor
        assert (cursor is None) == (len(hits) == result.count) == (not result.truncated)
        if cursor is None:
            return hits


@pytest.mark.parametrize("sort", ["relevance", "step", "step_desc"])
@pytest.mark.parametrize("query", QUERIES)
def test_pages_are_the_whole_list(searched: Searched, query: str, sort: Sort) -> None:
    whole = search(searched.reader, query, SearchOptions(selection=EVERY, sort=sort, limit=1000)).hits
    assert len({(hit.address, hit.start) for hit in whole}) == len(whole) > 12
    assert pages(searched.reader, query, sort, 7) == list(whole)


def test_orders(searched: Searched) -> None:
    options = SearchOptions(selection=EVERY, limit=1000)
    by_score = search(searched.reader, "the of", options).hits
    scores = [hit.score for hit in by_score if hit.score is not None]
    assert scores == sorted(scores, reverse=True) and len(scores) == len(by_score) and scores[0] > scores[-1]
    places = {}
    for sort in ("step", "step_desc"):
        hits = search(searched.reader, "the of", SearchOptions(selection=EVERY, limit=1000, sort=sort)).hits
        assert all(hit.score is None for hit in hits)
        places[sort] = [(hit.address.global_step, hit.address.attempt, hit.address, hit.start) for hit in hits]
    assert places["step"] == sorted(places["step"]) == places["step_desc"][::-1]
    assert {(hit.address, hit.start) for hit in by_score} == {place[2:] for place in places["step"]}


def test_a_cursor_is_of_its_question(searched: Searched) -> None:
    first = search(searched.reader, "the", SearchOptions(limit=3))
    assert first.next_cursor is not None
    for query, options in (
        ("of", SearchOptions(cursor=first.next_cursor)),
        ("the", SearchOptions(cursor=first.next_cursor, sort="step")),
        ("the", SearchOptions(cursor=first.next_cursor, selection=EVERY)),
    ):
        with pytest.raises(QueryError, match="another query"):
            search(searched.reader, query, options)
    generation, *place = decode_cursor(first.next_cursor, "search", 1)
    with pytest.raises(QueryError, match="generation 7"):
        search(searched.reader, "the", SearchOptions(cursor=encode_cursor("search", 1, (7, *place))))
    for wrong in ("", "x", "1.2", f"{generation}.ab.3", first.next_cursor + ".x.y.z", first.next_cursor[:-4]):
        with pytest.raises(CursorError, match="cursor"):
            search(searched.reader, "the", SearchOptions(cursor=wrong))
    deep = encode_cursor("search", 1, (generation, place[0], MAX_DEPTH_OF_PAGES))
    with pytest.raises(QueryError, match="sort by step"):
        search(searched.reader, "the", SearchOptions(cursor=deep))


@pytest.mark.parametrize("query", ["the", "-the", "の OR 검색", "nowhere"])
def test_facets_are_counts_of_the_matches(searched: Searched, query: str) -> None:
    for selection, segments in ((Selection(), searched.canonical), (EVERY, searched.scanned)):
        word = query.removeprefix("-")
        words = [terms_by_hand(part) for part in word.split(" OR ")]
        found = [one for one in segments if any(one.has_terms(each) for each in words) != query.startswith("-")]
        result = search(searched.reader, query, SearchOptions(selection=selection, limit=0, facets=True))
        assert result.facets is not None and result.hits == () and result.count == len(found)
        assert result.truncated == bool(found) and not result.facets.truncated
        sources = [one.source for one in found if one.source is not None]
        assert {each.value: each.count for each in result.facets.sources} == {
            name: sources.count(name) for name in sources
        }
        ranks = [one.dp_rank for one in found]
        assert {each.value: each.count for each in result.facets.dp_ranks} == {
            rank: ranks.count(rank) for rank in ranks
        }
        edges = result.facets.step_edges
        assert result.facets.steps == tuple(
            sum(low <= one.step < high for one in found) for low, high in itertools.pairwise(edges)
        )
        assert edges[0] <= 1 and edges[-1] > max(one.step for one in segments) and len(edges) <= 25


def test_highlights_are_where_the_terms_are(searched: Searched) -> None:
    decoded = {one.key: one.text for one in searched.scanned}
    seen = 0
    for query, wanted in (
        ("the", [["the"]]),
        ('"of the" -nowhere', [["of", "the"]]),
        ("検索 OR です", [["検", "索"], ["で", "す"]]),
        ("검색", [["검", "색"]]),
        ("数据", [["数", "据"]]),
        ("step:0.. の", [["の"]]),
    ):
        for hit in search(searched.reader, query, SearchOptions(selection=EVERY, limit=200)).hits:
            text, snippet = decoded[str(hit.address), hit.start], hit.snippet
            assert snippet is not None and snippet.highlights
            assert text[snippet.start : snippet.start + len(snippet.text)] == snippet.text
            for start, end in snippet.highlights:
                assert snippet.start <= start < end <= snippet.start + len(snippet.text)
                terms = terms_by_hand(text[start:end])
                assert any(terms == each * (len(terms) // len(each)) for each in wanted), (query, text[start:end])
                seen += 1
    assert seen > 100


def test_highlights_of_ngrams_prefixes_and_typos(searched: Searched) -> None:
    for query, good in (
        ("ngram:the", lambda text: text.strip() == "the"),
        ("sel*", lambda text: text.lower().startswith("sel")),
        ("wisdon~1", lambda text: text.lower() == "wisdom"),
        ('"of the"~3', lambda text: set(text.lower().split()) <= {"of", "the"}),
        ("-nowhere", lambda _: False),
    ):
        hits = search(searched.reader, query, SearchOptions(limit=20)).hits
        assert hits
        for hit in hits:
            assert hit.snippet is not None and bool(hit.snippet.highlights) == (query != "-nowhere")
            for start, end in hit.snippet.highlights:
                assert good(hit.snippet.text[start - hit.snippet.start : end - hit.snippet.start])


def test_hits_say_what_they_are(searched: Searched) -> None:
    scanned = {one.key: one for one in searched.scanned}
    result = search(searched.reader, "-nowhere", SearchOptions(selection=EVERY, limit=1000, sort="step"))
    assert result.count == len(scanned)
    for hit in result.hits:
        one = scanned[str(hit.address), hit.start]
        assert hit.end - hit.start == len(one.tokens)
        assert (None if hit.segment is None else (hit.segment.source, hit.segment.document_id)) == (
            None if one.source is None else (one.source, one.document)
        )
    plain = json.loads(json.dumps(result.to_json()))
    assert plain["hits"][3]["address"] == str(result.hits[3].address) and plain["count_relation"] == "eq"
    assert plain["generation"] == 1 and plain["shards_total"] == plain["shards_searched"] == len(searched.reader.shards)


def test_scores_do_not_depend_on_how_the_run_is_cut(searched: Searched, tmp_path: Path) -> None:
    """The same export in one shard an attempt. Frequencies are the index's, whatever they are in a shard."""
    (tmp_path / "export").symlink_to(searched.run_dir / "export")
    update_index(tmp_path, IndexOptions(shard_tokens=10_000_000))
    whole = IndexReader.open(tmp_path)
    assert len(whole.shards) == 2 < len(searched.reader.shards)
    options = SearchOptions(selection=EVERY, limit=1000)
    spread = 0.0
    for query in ("the", "wisdom", "検", "ids:300", "ngram:wisdom"):
        cut = {(hit.address, hit.start): hit.score for hit in search(searched.reader, query, options).hits}
        uncut = {(hit.address, hit.start): hit.score for hit in search(whole, query, options).hits}
        assert cut.keys() == uncut.keys()
        if query.startswith(("ids:", "ngram:")):
            assert len(set(uncut.values())) == 1 and all(uncut.values())
            assert cut == pytest.approx(uncut)
            continue
        for place, score in uncut.items():
            assert cut[place] == pytest.approx(score, rel=0.2)  # the mean length of a segment is the shard's
        idf = [shard_idf(shard.full_text, query) for shard in searched.reader.shards]
        spread = max(spread, max(idf) / min(idf))
    assert spread > 1.5, "no term of these is rarer in one shard than in another: the test would show nothing"


def shard_idf(index: FullTextIndex, term: str) -> float:
    """What the engine takes for it on its own."""
    frequency = index.document_frequency("text", term)
    return math.log(1 + (index.num_documents - frequency + 0.5) / (frequency + 0.5))


def test_limits(searched: Searched) -> None:
    for limit in (-1, 1001):
        with pytest.raises(QueryError, match="limit"):
            SearchOptions(limit=limit)
    with pytest.raises(QueryError, match="sort"):
        SearchOptions(sort="newest")  # type: ignore[arg-type]
    assert search(searched.reader, "the", SearchOptions(limit=0)).next_cursor is None


def test_a_run_without_a_tokenizer_has_ngrams_and_fields_alone(tmp_path: Path, text_run: TextRun) -> None:
    rows = all_rows(text_run.run_dir)[:24]
    segments = [
        [Segment(start=0, length=40, source="web", document_id=f"d{i}", document_token_offset=0)] for i in range(24)
    ]
    steps = [
        MadeStep(microbatches={0: [rows[i].tokens[None].astype("int64")]}, segments={0: [[segments[i]]]})
        for i in range(24)
    ]
    make_attempt(tmp_path, RunSpec(sequence_length=LENGTH, vocab_size=2000, run_id="bare", config={}), steps)
    update_index(tmp_path)
    reader = IndexReader.open(tmp_path)
    scanned = scan(all_rows(tmp_path), None)
    ids = rows[5].tokens.tolist()[10:13]
    result = search(reader, f"ids:[{ids[0]} {ids[1]} {ids[2]}] source:web", SearchOptions(limit=100))
    expected = {one.key for one in scanned if one.has_tokens(ids) and one.source == "web"}
    assert {(str(hit.address), hit.start) for hit in result.hits} == expected and expected
    assert all(hit.snippet is None for hit in result.hits)
    for query in ("word", '"a phrase"', "pre*", "fuzzy~1", "ngram:x", f"ids:{ids[0]} word"):
        with pytest.raises(QueryError, match=r"no tokenizer.*ids:\[12 5 77\]"):
            search(reader, query)
    with pytest.raises(QueryError, match=r"token ids in \[0, 2000\)"):
        search(reader, "ids:2000")


@pytest.fixture
def copied(searched: Searched, tmp_path: Path) -> Path:
    shutil.copytree(searched.run_dir, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def test_an_index_of_the_format_before_is_built_again(copied: Path, searched: Searched) -> None:
    shards = [shard.directory.name for shard in searched.reader.shards]
    generation = copied / "index" / "generations" / "000001" / "generation.json"
    document = json.loads(generation.read_text())
    for name in shards:
        manifest = copied / "index" / "shards" / name / "shard.json"
        manifest.write_text(manifest.read_text().replace(SHARD_FORMAT, "kiseki-shard-v3"))
        document["shards"][name] = hashlib.sha256(manifest.read_bytes()).hexdigest()
    generation.write_text(json.dumps(document))
    digest = hashlib.sha256(generation.read_bytes()).hexdigest()
    (copied / "index" / "CURRENT").write_text(f"000001 {digest}\n")
    with pytest.raises(IncompleteError, match="built by another version of kiseki; run `kiseki index"):
        IndexReader.open(copied)
    report = update_index(copied, IndexOptions(shard_tokens=LENGTH * 60))
    assert report.published and report.shards_built == report.num_shards
    assert search(IndexReader.open(copied), "the", SearchOptions(limit=0)).count == search(searched.reader, "the").count


def test_a_shard_whose_full_text_is_gone_is_named(copied: Path) -> None:
    """Files of the right size with other bytes: the shard is left out, the others answer."""
    whole = search(IndexReader.open(copied), "the", SearchOptions(limit=0))
    damaged = IndexReader.open(copied).shards[1]
    for path in (damaged.directory / "text").iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    result = search(IndexReader.open(copied), "the", SearchOptions(limit=1000, facets=True))
    assert result.shards_failed == 1 and damaged.info.name in result.failures[0] and result.count_relation == "gte"
    assert 0 < result.count < whole.count and len(result.hits) == result.count
    update_index(copied, IndexOptions(verify=True, shard_tokens=LENGTH * 60))
    assert search(IndexReader.open(copied), "the", SearchOptions(limit=0)).count == whole.count


def test_a_count_leaves_a_damaged_shard_out(copied: Path) -> None:
    """Each question by itself asks again without it; whoever calls it need not."""
    whole = IndexReader.open(copied)
    ids = whole.shards[0].tokens(0)[:1].tolist()
    by_shard = counts_by_shard(whole, ids, EVERY)
    damaged = whole.shards[1].directory / "sequences.parquet"
    damaged.write_bytes(bytes(damaged.stat().st_size))
    reader, other = IndexReader.open(copied), IndexReader.open(copied)
    counts = (count_of_ngram(reader, ids, EVERY).count, sum(counts_by_shard(other, ids, EVERY)))
    assert set(counts) == {sum(by_shard) - by_shard[1]}
    for failed in (reader.failed, other.failed):
        assert len(failed) == 1 and whole.shards[1].info.name in failed[0]


def test_an_index_that_cannot_be_written_is_searched(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only file system: the engine's lock file would stand in the index."""
    queries = ("the", '"of the"', "s*", "step:3..20")
    expected = [search(IndexReader.open(copied), query, SearchOptions(limit=50)).hits for query in queries]
    locks = list((copied / "index").rglob(".tantivy*.lock"))
    for lock in locks:
        lock.unlink()
        lock.mkdir()  # it cannot be opened for writing, as one on a read-only file system
    assert locks, "it makes none any more: the links are needless"
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    reader = IndexReader.open(copied)
    assert [search(reader, query, SearchOptions(limit=50)).hits for query in queries] == expected
    assert all(lock.is_dir() for lock in (copied / "index").rglob(".tantivy*.lock"))
