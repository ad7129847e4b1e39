"""The index answers exactly what a brute-force scan of the export finds: spans, counts, steps, ranks, places."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.build.update import IndexOptions, update_index
from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from indexer.trace.counts import count_of_ngram
from indexer.trace.records import Trace
from indexer.trace.trace import TraceOptions, trace
from tests.support.export_maker import MadeStep, all_rows, brute_force_spans, make_attempt
from train_hooks import StepStatus
from train_hooks.export_format.records import Row
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec

LENGTH = 12


@st.composite
def jobs(draw: st.DrawFn) -> tuple[int, int, list[list[list[int]]]]:
    """(alphabet, writers, steps): a step is one row of tokens for each writer."""
    alphabet = draw(st.sampled_from([2, 3, 9, 70_000]))
    writers = draw(st.integers(1, 3))
    token = st.integers(0, alphabet - 1) if alphabet < 100 else st.sampled_from([0, 1, 65_534, 65_535, 69_999])
    row = st.lists(token, min_size=LENGTH, max_size=LENGTH)
    steps = draw(st.lists(st.lists(row, min_size=writers, max_size=writers), min_size=1, max_size=6))
    if len(steps) > 2 and draw(st.booleans()):
        steps[-1] = steps[0]
    if draw(st.booleans()):
        lengths = [draw(st.integers(1, LENGTH)) for _ in steps]
        steps = [[row[:length] for row in step] for step, length in zip(steps, lengths, strict=True)]
    return alphabet, writers, steps


def found_spans(found: Trace) -> list[tuple[int, int, int, int, int, tuple[int, ...] | None]]:
    return [(s.start, s.end, s.count, s.first_step, s.last_step, s.dp_ranks) for s in found.spans]


def scanned_spans(
    rows: list[Row], query: list[int], min_length: int
) -> list[tuple[int, int, int, int, int, tuple[int, ...]]]:
    return [
        (
            start, end, len(places), min(row.address.global_step for row, _ in places),
            max(row.address.global_step for row, _ in places), tuple(sorted({row.address.dp_rank for row, _ in places})),
        )
        for start, end, places in brute_force_spans(rows, query, min_length)
    ]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(job=jobs(), data=st.data())
def test_trace_equals_brute_force(job: tuple[int, int, list[list[list[int]]]], data: st.DataObject) -> None:
    alphabet, writers, steps = job
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        made = [MadeStep(microbatches={rank: [np.array([row])] for rank, row in enumerate(step)}) for step in steps]
        shorter = any(len(row) < LENGTH for step in steps for row in step)
        spec = RunSpec(sequence_length=LENGTH, vocab_size=alphabet, config={}, shorter_rows=shorter)
        make_attempt(run, spec, made, num_writers=writers)
        rows = all_rows(run)
        assert [row.tokens.tolist() for row in rows] == [row for step in steps for row in step]
        update_index(run, IndexOptions(shard_tokens=LENGTH * writers * data.draw(st.integers(1, 4))))
        reader = IndexReader.open(run)
        flat = [token for step in steps for row in step for token in row]
        start = data.draw(st.integers(0, len(flat) - 1))
        query = flat[start : start + 20] + data.draw(st.lists(st.sampled_from(flat), max_size=6))
        min_length = data.draw(st.integers(1, 10))
        before = data.draw(st.none() | st.integers(1, len(steps) + 1))
        options = TraceOptions(
            min_length=min_length, selection=Selection(before_step=before), num_hits=100, max_spans=10_000
        )
        found = trace(reader, token_ids=query, options=options)
        seen = [row for row in rows if before is None or row.address.global_step < before]
        assert found_spans(found) == scanned_spans(seen, query, min_length)
        expected = brute_force_spans(seen, query, min_length)
        for span, (_, _, places) in zip(found.spans, expected, strict=True):
            steps_hit = [row.address.global_step for row, _ in places]
            bins = np.histogram(steps_hit, [*found.step_edges[:-1], found.step_edges[-1] - 0.5])[0]
            assert span.exposures == tuple(bins.tolist())
            hits = [(hit.address, hit.offset) for hit in span.hits]
            assert hits == sorted((row.address, offset) for row, offset in places)[:100]
        gram = query[: data.draw(st.integers(1, 5))]
        assert count_of_ngram(reader, gram, Selection(before_step=before)).count == sum(
            row.tokens.tolist()[at : at + len(gram)] == gram for row in seen for at in range(LENGTH)
        )


def test_rollback_supersedes_and_lineage_decides(tmp_path: Path) -> None:
    run = tmp_path / "run"
    spec = RunSpec(sequence_length=LENGTH, vocab_size=1000, config={})
    rng = np.random.default_rng(0)
    first = [MadeStep(microbatches={0: [rng.integers(0, 1000, (2, LENGTH))]}) for _ in range(6)]
    assert make_attempt(run, spec, first, close=False) == 1
    again = [MadeStep(microbatches={0: [rng.integers(0, 1000, (2, LENGTH))]}) for _ in range(3)]
    skipped = MadeStep(microbatches={0: [rng.integers(0, 1000, (2, LENGTH))]}, status=StepStatus.SKIPPED_UPDATE)
    resume = ResumeToken(run_id="run", attempt=1, global_step=4)
    assert make_attempt(run, spec, [*again, skipped], resume=resume) == 2
    update_index(run)
    reader = IndexReader.open(run)

    def counts(step: MadeStep, **selection: object) -> int:
        gram = step.microbatches[0][0][0].tolist()
        return count_of_ngram(reader, gram, Selection(**selection)).count  # type: ignore[arg-type]

    assert [counts(step) for step in first] == [1, 1, 1, 1, 0, 0]
    assert [counts(step) for step in again] == [1, 1, 1]
    assert counts(skipped) == 0
    assert [counts(step, lineage="all") for step in [*first, *again, skipped]] == [1] * 10
    assert [counts(step, attempt=1) for step in first] == [1] * 6
    assert counts(first[5], attempt=2) == 0
    assert reader.sql("SELECT attempt, global_step FROM steps WHERE NOT canonical ORDER BY 2") == [
        {"attempt": 1, "global_step": 5},
        {"attempt": 1, "global_step": 6},
    ]


def test_indexing_appends_and_is_idempotent(tmp_path: Path) -> None:
    run = tmp_path / "run"
    spec = RunSpec(sequence_length=LENGTH, vocab_size=1000, config={})
    rng = np.random.default_rng(1)
    steps = [MadeStep(microbatches={0: [rng.integers(0, 1000, (4, LENGTH))]}, metrics={"loss": 1.0}) for _ in range(5)]
    make_attempt(run, spec, steps)
    first = update_index(run, IndexOptions(shard_tokens=100))
    assert (first.published, first.num_sequences, first.last_step) == (True, 20, 5)
    reader = IndexReader.open(run)
    same = update_index(run, IndexOptions(shard_tokens=100))
    assert (same.published, same.shards_built, same.generation) == (False, 0, first.generation)
    make_attempt(run, spec, steps[:2], resume=ResumeToken(run_id="run", attempt=1, global_step=5))
    more = update_index(run, IndexOptions(shard_tokens=100))
    assert (more.published, more.num_sequences, more.last_step) == (True, 28, 7)
    gram = steps[0].microbatches[0][0][1].tolist()
    assert count_of_ngram(reader, gram, Selection()).count == 1, "a reader keeps the generation it opened"
    assert count_of_ngram(IndexReader.open(run), gram, Selection()).count == 2
