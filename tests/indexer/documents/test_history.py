"""The history of a document against a scan of every row of the export."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.answers.cursor import encode_cursor
from indexer.build.update import update_index
from indexer.documents import history
from indexer.documents.history import DocumentHistory, Exposure, document_history
from indexer.documents.token_ranges import covered, overlap, times_covered
from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from indexer.selection.visibility import Visibility
from indexer.storage.document_index import PLACES, build_document_index, document_key
from tests.conftest import TextRun
from tests.support.example_exports import write_export
from tests.support.export_maker import all_rows
from train_hooks.export_format.errors import DamageError, QueryError
from train_hooks.export_format.records import Row, Segment


@pytest.fixture(scope="module")
def reader(text_run: TextRun) -> IndexReader:
    return IndexReader.open(text_run.run_dir)


@pytest.fixture(scope="module")
def rows(text_run: TextRun) -> list[Row]:
    return all_rows(text_run.run_dir)


def scan(rows: list[Row], document: tuple[str, str]) -> list[tuple[Row, Segment]]:
    return [
        (row, segment) for row in rows for segment in row.segments if (segment.source, segment.document_id) == document
    ]


def times(places: list[tuple[Row, Segment]]) -> Counter[int]:
    """How often each token of the document was seen."""
    counts: Counter[int] = Counter()
    for _, segment in places:
        counts.update(range(segment.document_token_offset, segment.document_token_offset + segment.length))
    return counts


def check(found: DocumentHistory, expected: list[tuple[Row, Segment]]) -> None:
    seen, counts = set[int](), times(expected)
    assert [(item.address, item.segment) for item in found.exposures] == [(row.address, part) for row, part in expected]
    for item, (_, part) in zip(found.exposures, expected, strict=True):
        tokens = set(range(part.document_token_offset, part.document_token_offset + part.length))
        assert item.num_new_tokens == len(tokens - seen)
        seen |= tokens
    assert found.num_exposures == len(expected)
    assert found.num_steps == len({(row.address.attempt, row.address.global_step) for row, _ in expected})
    assert set(found.dp_ranks) == {row.address.dp_rank for row, _ in expected}
    steps = [row.address.global_step for row, _ in expected]
    assert (found.first_step, found.last_step) == (min(steps), max(steps))
    assert (found.num_tokens_seen, found.num_tokens_distinct) == (sum(counts.values()), len(counts))
    assert dict(found.times_seen) == dict(Counter(counts.values())) and found.end_token == max(counts) + 1
    assert {token for start, end in found.ranges for token in range(start, end)} == set(counts)


def test_every_document_is_found_as_a_scan_finds_it(text_run: TextRun, reader: IndexReader, rows: list[Row]) -> None:
    assert len(reader.shards) > 2
    for document in text_run.documents:
        expected = scan(rows, document)
        found = document_history(reader, *document, limit=1000)
        check(found, expected)
        assert found.next is None and not found.truncated
        for item, (row, part) in zip(found.exposures, expected, strict=True):
            assert item.text == reader.tokenizer.decode(row.tokens[part.start : part.start + part.length])
            assert item.canonical and item.status == "applied"


def test_pages_join_to_the_whole(text_run: TextRun, reader: IndexReader) -> None:
    document = max(text_run.documents, key=lambda name: len(text_run.documents[name]))
    whole = document_history(reader, *document, limit=1000, with_text=False)
    pages: list[tuple[Exposure, ...]] = []
    after = None
    while not pages or after is not None:
        page = document_history(reader, *document, limit=7, after=after, with_text=False)
        assert page.num_exposures == whole.num_exposures and page.ranges == whole.ranges
        pages.append(page.exposures)
        after = page.next
    assert len(pages) > 2 and sum(pages, ()) == whole.exposures
    assert all(item.text is None for item in whole.exposures)
    counted = document_history(reader, *document, limit=0)
    assert counted.exposures == () and counted.truncated and counted.next is None


def test_truncated_says_whether_ranges_are_left_out(
    reader: IndexReader, text_run: TextRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = next(iter(text_run.documents))
    for selection in (Selection(), Selection(first_step=1, last_step=3)):
        found = document_history(reader, *document, selection=selection, limit=1000)
        monkeypatch.setattr(history, "MAX_RANGES", len(found.ranges))
        assert not document_history(reader, *document, selection=selection, limit=1000).truncated
    monkeypatch.setattr(history, "MAX_RANGES", 0)
    assert document_history(reader, *document, limit=1000).truncated


def test_filters(text_run: TextRun, reader: IndexReader, rows: list[Row]) -> None:
    document = next(iter(text_run.documents))
    everything = scan(rows, document)
    half = text_run.num_steps // 2
    steps = set(range(1, text_run.num_steps + 1))
    for selection, ranks, kept in (
        (Selection(before_step=half + 1), {0, 1}, {step for step in steps if step <= half}),
        (Selection(dp_rank=1), {1}, steps),
        (Selection(first_step=half + 1, last_step=half + 3), {0, 1}, {half + 1, half + 2, half + 3}),
    ):
        check(
            document_history(reader, *document, selection=selection, limit=1000),
            [
                (row, part)
                for row, part in everything
                if row.address.dp_rank in ranks and row.address.global_step in kept
            ],
        )
    with pytest.raises(QueryError, match=rf"none of the selected steps, and {len(everything)} times in others"):
        document_history(reader, *document, selection=Selection(first_step=10**6))


def test_superseded_steps_are_left_out_or_marked(tmp_path: Path) -> None:
    write_export(tmp_path / "run")
    update_index(tmp_path / "run")
    reader, rows = IndexReader.open(tmp_path / "run"), all_rows(tmp_path / "run")
    everything = scan(rows, ("本", "é"))
    canonical = [(row, part) for row, part in everything if row.address.attempt == 2 or row.address.global_step <= 3]
    assert len(canonical) < len(everything)
    check(document_history(reader, "本", "é", limit=1000), canonical)
    marked = document_history(reader, "本", "é", selection=Selection(lineage="all"), limit=1000)
    check(marked, everything)
    assert [item.canonical for item in marked.exposures] == [place in canonical for place in everything]
    assert all(item.text is None for item in marked.exposures)
    assert marked.times_seen == ((len(everything), 10),) and marked.end_token == 50


def test_what_is_hidden_is_in_no_number_and_no_name(text_run: TextRun, reader: IndexReader, rows: list[Row]) -> None:
    document = max(text_run.documents, key=lambda name: len(text_run.documents[name]))
    source, document_id = document
    expected = scan(rows, document)
    hidden_row = expected[1][0]
    row, part = expected[-1]
    span = (row.address, part.start, part.start + 1)
    hiding = Visibility(hidden_rows=frozenset([hidden_row.address]), hidden_spans=frozenset([span]))
    left = [(found, kept) for found, kept in expected if found.address != hidden_row.address]
    found = document_history(reader, *document, selection=Selection(visibility=hiding), limit=1000)
    assert [(item.address, item.segment) for item in found.exposures] == [(kept.address, seg) for kept, seg in left]
    counts = times(left)
    counts[part.document_token_offset] -= 1
    assert found.num_tokens_seen == sum(counts.values()) and found.num_tokens_distinct == sum(
        map(bool, counts.values())
    )
    assert (found.exposures[-1].text or "").startswith("█")
    for hiding in (
        Visibility(hidden_sources=frozenset([source])),
        Visibility(sources=frozenset(["another", next(name for name, _ in text_run.documents if name != source)])),
        Visibility(hidden_documents=frozenset([document])),
    ):
        with pytest.raises(QueryError) as error:
            document_history(reader, *document, selection=Selection(visibility=hiding))
        said = str(error.value).replace(f"no document {document_id!r}", "").replace(f"no source {source!r}", "")
        assert document_id not in said and "others" not in said
        assert hiding.hidden_documents or source not in said


def test_errors_name_what_is_near(text_run: TextRun, reader: IndexReader) -> None:
    (source, document_id), *_ = text_run.documents
    with pytest.raises(QueryError, match=f"no source 'devils-dictionery'.*near: '{source}'"):
        document_history(reader, "devils-dictionery", document_id)
    with pytest.raises(QueryError, match=f"no document '{document_id}x'; near: .*'{document_id}'"):
        document_history(reader, source, document_id + "x")
    with pytest.raises(QueryError, match=f"source tatoeba-ja has no document '{document_id}', but {source} has one"):
        document_history(reader, "tatoeba-ja", document_id)
    with pytest.raises(QueryError, match="near: '"):
        document_history(reader, source, "☃ nothing begins like this")
    for after, message in (
        ("nonsense", "cursor: expected one that"),
        ("text/a1/s1/r0/m0/q0:3", "cursor: expected one that"),
        (encode_cursor("document", 1, ("text/a1/s1/r0/m0/q0",)), "cursor: expected one that"),
        (encode_cursor("document", 1, ("text/a1", 3)), "sequence address"),
        (encode_cursor("document", 1, ("other/a1/s1/r0/m0/q0", 3)), "one of run text"),
        (encode_cursor("document", 1, ("text/a1/s1/r7/m0/q0", 3)), "holds no sequence"),
    ):
        with pytest.raises(QueryError, match=message):
            document_history(reader, source, document_id, after=after)
    with pytest.raises(QueryError, match="from 0 to 1000, found 1001"):
        document_history(reader, source, document_id, limit=1001)


def test_a_document_index_that_points_elsewhere_is_damage(text_run: TextRun, tmp_path: Path) -> None:
    shutil.copytree(text_run.run_dir, tmp_path / "run", symlinks=True)
    reader = IndexReader.open(tmp_path / "run")
    document = next(iter(text_run.documents))
    holding = [shard for shard in reader.shards if len(shard.documents.find(document_key(*document)))]
    path = holding[0].directory / PLACES
    places = np.load(path)
    places["row"] = np.roll(places["row"], len(places) // 2)
    np.save(path, places)
    reader = IndexReader.open(tmp_path / "run")
    found = document_history(reader, *document, limit=1000)
    assert found.shards_failed == 1 and found.count_relation == "gte" and "points elsewhere" in found.failures[0]
    damaged = IndexReader.open(tmp_path / "run").shards[reader.group_numbers[holding[0].info.name]]
    with pytest.raises(DamageError, match="document_places"):
        damaged.check_hashes()


def test_documents_of_one_key_stand_together(reader: IndexReader) -> None:
    for shard in reader.shards:
        built = build_document_index(shard.segments)
        assert np.array_equal(built.keys, shard.documents.keys) and np.array_equal(built.places, shard.documents.places)
        assert (np.diff(built.keys.astype(np.float64)) >= 0).all() and len(built.keys) == shard.info.num_segments


ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)).map(lambda pair: (pair[0], sum(pair))), max_size=12)


@given(ranges, st.integers(0, 50), st.integers(0, 12))
def test_token_ranges_are_sets(parts: list[tuple[int, int]], start: int, length: int) -> None:
    array = np.array(parts, np.int64).reshape(-1, 2)
    counts = Counter(token for begin, end in parts for token in range(begin, end))
    joined = covered(array)
    assert {token for begin, end in joined.tolist() for token in range(begin, end)} == set(counts)
    assert all(end < begin for (_, end), (begin, _) in zip(joined.tolist(), joined.tolist()[1:], strict=False))
    assert overlap(joined, start, start + length) == len(set(counts) & set(range(start, start + length)))
    assert dict(times_covered(array)) == dict(Counter(counts.values()))
