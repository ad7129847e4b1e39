"""What is hidden is in no answer: compared with a scan of an export from which it was cut out. And tombstones."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.build.update import IndexOptions, update_index
from indexer.reader import HIDDEN, IndexReader
from indexer.selection.rows import Selection
from indexer.selection.tombstones import TombstoneFile
from indexer.selection.visibility import Visibility
from indexer.storage.paths import IndexPaths
from indexer.trace.counts import count_of_ngram
from indexer.trace.ngrams import PageEnd, hits_of_ngram
from indexer.trace.trace import TraceOptions, trace
from tests.conftest import TextRun
from tests.support.export_maker import MadeStep, all_rows, brute_force_spans, make_attempt
from train_hooks import Segment
from train_hooks.export_format.errors import DamageError, InputError
from train_hooks.export_format.records import Row, SequenceAddress
from train_hooks.export_format.writing.attempts import RunSpec

LENGTH, SOURCES = 16, ("a", "b", "c")


@st.composite
def packings(draw: st.DrawFn) -> list[Segment]:
    """Segments of one row, with gaps between some."""
    segments, start = [], draw(st.integers(0, 2))
    while start < LENGTH:
        length = draw(st.integers(1, LENGTH - start))
        source, document = draw(st.sampled_from(SOURCES)), draw(st.sampled_from(["1", "2"]))
        segments.append(
            Segment(start=start, length=length, source=source, document_id=document, document_token_offset=0)
        )
        start += length + draw(st.sampled_from([0, 0, 0, 1]))
    return segments


@st.composite
def visibilities(draw: st.DrawFn) -> Visibility:
    address = st.builds(
        SequenceAddress, run_id=st.just("run"), attempt=st.just(1), global_step=st.integers(1, 5), dp_rank=st.just(0),
        microbatch=st.just(0), slot=st.integers(0, 1),
    )  # fmt: skip
    span = st.tuples(address, st.integers(0, LENGTH - 1), st.integers(1, LENGTH)).filter(lambda item: item[1] < item[2])
    names = st.sampled_from(["", *SOURCES])
    return Visibility(
        sources=draw(st.none() | st.frozensets(names)),
        hidden_sources=draw(st.frozensets(names, max_size=1)),
        hidden_rows=draw(st.frozensets(address, max_size=1)),
        hidden_documents=draw(st.frozensets(st.tuples(st.sampled_from(SOURCES), st.just("1")), max_size=1)),
        hidden_spans=draw(st.frozensets(span, max_size=2)),
    )


def hides(visibility: Visibility, row: Row, position: int) -> bool:
    """Whether a token is hidden, said once more in the plainest way."""
    owner = next((s for s in row.segments if s.start <= position < s.start + s.length), None)
    source = owner.source if owner is not None else ""
    return (
        (visibility.sources is not None and source not in visibility.sources)
        or source in visibility.hidden_sources
        or row.address in visibility.hidden_rows
        or (owner is not None and (owner.source, owner.document_id) in visibility.hidden_documents)
        or any(row.address == at and a <= position < b for at, a, b in visibility.hidden_spans)
    )


def cut_out(rows: list[Row], visibility: Visibility) -> list[Row]:
    """Each run of visible tokens as a row of its own; sample_index says where it began."""
    pieces = []
    for row in rows:
        shown = [not hides(visibility, row, position) for position in range(LENGTH)]
        start = 0
        for position in range(LENGTH + 1):
            if position == LENGTH or not shown[position]:
                if position > start:
                    pieces.append(dataclasses.replace(row, tokens=row.tokens[start:position], sample_index=start))
                start = position + 1
    return pieces


def make_run(run: Path, rows: np.ndarray, segments: list[list[Segment]]) -> None:
    steps = [
        MadeStep(microbatches={0: [rows[at : at + 2]]}, segments={0: [segments[at : at + 2]]})
        for at in range(0, len(rows), 2)
    ]
    make_attempt(run, RunSpec(sequence_length=LENGTH, vocab_size=6, run_id="run", config={}), steps)
    update_index(run, IndexOptions(shard_tokens=LENGTH * 4))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), visibility=visibilities())
def test_answers_equal_a_scan_without_the_hidden(data: st.DataObject, visibility: Visibility) -> None:
    num = 2 * data.draw(st.integers(1, 4))
    token = st.integers(0, 5 if data.draw(st.booleans()) else 1)
    tokens = np.array([data.draw(st.lists(token, min_size=LENGTH, max_size=LENGTH)) for _ in range(num)])
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        make_run(run, tokens, [data.draw(packings()) for _ in range(num)])
        reader = IndexReader.open(run)
        visible = cut_out(all_rows(run), visibility)
        start = data.draw(st.integers(0, num - 1))
        query = [*tokens[start].tolist(), *tokens[(start + 1) % num].tolist()][: data.draw(st.integers(1, 2 * LENGTH))]
        min_length = data.draw(st.integers(1, 6))
        selection = Selection(visibility=visibility)
        found = trace(
            reader, token_ids=query,
            options=TraceOptions(min_length=min_length, selection=selection, num_hits=100, max_spans=10_000),
        )  # fmt: skip
        expected = brute_force_spans(visible, query, min_length)
        assert [(span.start, span.end, span.count) for span in found.spans] == [
            (first, last, len(places)) for first, last, places in expected
        ]
        for span, (_, _, places) in zip(found.spans, expected, strict=True):
            steps = [row.address.global_step for row, _ in places]
            where = sorted((row.address, (row.sample_index or 0) + offset) for row, offset in places)
            assert (span.first_step, span.last_step, sum(span.exposures)) == (min(steps), max(steps), len(places))
            assert [(hit.address, hit.offset) for hit in span.hits] == where
        gram = query[: data.draw(st.integers(1, 4))]
        expected_places = sorted(
            (row.address, (row.sample_index or 0) + at)
            for row in visible
            for at in range(len(row.tokens))
            if row.tokens[at : at + len(gram)].tolist() == gram
        )
        assert count_of_ngram(reader, gram, selection).count == len(expected_places)
        assert paged(reader, gram, selection) == expected_places
        counts = np.bincount([int(token) for row in visible for token in row.tokens], minlength=6)
        expected_logs = np.log(np.maximum(counts, 0.5) / max(1, counts.sum()))
        np.testing.assert_allclose(reader.log_probabilities(visibility), expected_logs)


def paged(reader: IndexReader, gram: list[int], selection: Selection) -> list[tuple[SequenceAddress, int]]:
    """All places, three a page."""
    found: list[tuple[SequenceAddress, int]] = []
    after: PageEnd | None = None
    while True:
        page = hits_of_ngram(reader, gram, selection, after=after, limit=3)
        found += [(hit.address, hit.offset) for hit in page.hits]
        assert len(page.hits) == 3 or page.last is None
        if page.last is None:
            return found
        after = page.last


def test_contexts_and_sequences_show_nothing_hidden(text_run: TextRun) -> None:
    reader = IndexReader.open(text_run.run_dir)
    visibility = Visibility(sources=frozenset(["tatoeba-ja"]))
    sequence = next(
        sequence
        for shard in reader.shards
        for sequence in (reader.sequence_at(shard, ordinal) for ordinal in range(shard.info.num_sequences))
        if len({segment.source for segment in sequence.segments}) > 1
    )
    shown = reader.describe(sequence, visibility)
    hidden = [segment for segment in sequence.segments if segment.source != "tatoeba-ja"]
    for segment, plain in zip(sequence.segments, shown["segments"], strict=True):
        assert plain["redacted"] == (segment in hidden)
        assert (plain["text"] is None) == (plain["document_id"] is None) == (segment in hidden)
    positions = {at for segment in hidden for at in range(segment.start, segment.start + segment.length)}
    assert {at for at, token in enumerate(shown["token_ids"]) if token is None} == positions
    assert shown["text"].count(HIDDEN) == len(positions) and shown["redacted"]
    visible = next(segment for segment in sequence.segments if segment.source == "tatoeba-ja")
    gram = sequence.tokens[visible.start : visible.start + 1].tolist()
    whole = hits_of_ngram(reader, gram, Selection(), limit=1000, context_tokens=64).hits
    cut = hits_of_ngram(reader, gram, Selection(visibility=visibility), limit=1000, context_tokens=64).hits
    pairs = {(hit.address, hit.offset): hit for hit in whole}
    assert cut and all(hit.segments[0].source == "tatoeba-ja" for hit in cut)
    here = next(hit for hit in cut if hit.address == sequence.address)
    before, after = (pairs[here.address, here.offset].context_before, pairs[here.address, here.offset].context_after)
    assert before.endswith(here.context_before) and after.startswith(here.context_after)
    assert len(here.context_before) + len(here.context_after) < len(before) + len(after)


def test_tombstones_hide_at_once_and_can_be_lifted(tmp_path: Path) -> None:
    run, rng = tmp_path / "run", np.random.default_rng(0)
    rows = rng.integers(0, 6, (8, LENGTH))
    segment = [
        Segment(start=0, length=LENGTH, source="a", document_id=str(row), document_token_offset=0) for row in range(8)
    ]
    make_run(run, rows, [[item] for item in segment])
    reader, file = IndexReader.open(run), TombstoneFile(IndexPaths(run))

    def counts() -> list[int]:
        return [count_of_ngram(reader, row.tolist(), Selection()).count for row in rows]

    assert counts() == [1] * 8 and file.read() == []
    document = file.add(reason="asked to", source="a", document_id="2")
    row = file.add(reason="asked to", address="run/a1/s1/r0/m0/q1")
    span = file.add(reason="a name", address="run/a1/s4/r0/m0/q0", start=3, end=5)
    assert counts() == [1, 0, 0, 1, 1, 1, 0, 1]
    described = reader.describe(reader.sequence("run/a1/s4/r0/m0/q0"))
    assert [at for at, token in enumerate(described["token_ids"]) if token is None] == [3, 4]
    assert reader.describe(reader.sequence("run/a1/s2/r0/m0/q0"))["segments"][0]["document_id"] is None
    file.lift(span.number, reason="was no name")
    assert counts() == [1, 0, 0, 1, 1, 1, 1, 1]
    assert [item.what for item in file.read()] == [document.what, row.what, span.what]
    row_address = "run/a1/s1/r0/m0/q1"
    bads: list[dict[str, str | int]] = [
        {},
        {"source": "a"},
        {"address": "nonsense"},
        {"address": row_address, "start": 3},
        {"address": row_address, "start": 3, "end": 3},
    ]
    for bad in bads:
        with pytest.raises(InputError):
            file.add(reason="x", **bad)
    for number in (0, 4, span.number):
        with pytest.raises(InputError):
            file.lift(number, reason="x")
    path = IndexPaths(run).tombstones
    path.write_bytes(path.read_bytes().replace(b"asked to", b"asked no", 1))
    with pytest.raises(DamageError):
        counts()
