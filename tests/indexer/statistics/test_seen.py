"""Seen shares against sets of 50-grams; that any cut into shards gives the same."""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.build.update import IndexOptions, update_index
from indexer.reader import IndexReader
from indexer.spans.build import build_span_arrays
from indexer.spans.filters import Filter
from indexer.statistics.anchors import SEEN_LENGTH, anchors, bloom_filter, in_bloom_filter
from indexer.statistics.seen import EarlierShard, seen_shares
from tests.support.export_maker import MadeStep, all_rows, make_attempt
from train_hooks import StepStatus
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec

Row = list[int]


def windows(row: Sequence[int]) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + SEEN_LENGTH]) for i in range(len(row) - SEEN_LENGTH + 1)]


def share(row: Sequence[int], known: set[tuple[int, ...]]) -> float:
    covered = {i + k for i, window in enumerate(windows(row)) if window in known for k in range(SEEN_LENGTH)}
    return len(covered) / len(row)


def blocks(chance: random.Random, alphabet: int) -> list[Row]:
    """Pieces that rows are put together from, so that 50-grams come back, whole and nearly."""
    return [[chance.randrange(alphabet) for _ in range(chance.choice((20, 49, 50, 51, 90)))] for _ in range(5)]


def row_of(chance: random.Random, pieces: list[Row], length: int, alphabet: int) -> Row:
    row: Row = []
    while len(row) < length:
        row += chance.choice(pieces) if chance.random() < 0.6 else [chance.randrange(alphabet) for _ in range(15)]
    return row[:length]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from([1, 2, 50]))
def test_shares_are_those_of_sets_of_50_grams_however_shards_are_cut(seed: int, alphabet: int) -> None:
    chance = random.Random(seed)
    pieces = blocks(chance, alphabet)
    steps = sorted(chance.randrange(1, 7) for _ in range(14))
    rows = [row_of(chance, pieces, chance.choice((10, 60, 130)), alphabet) for _ in steps]
    applied = {step: chance.random() < 0.8 for step in steps}
    known_before = {
        step: {w for row, s in zip(rows, steps, strict=True) if s < step and applied[s] for w in windows(row)}
        for step in steps
    }
    expected = [share(row, known_before[step]) for row, step in zip(rows, steps, strict=True)]
    cuts = sorted(
        {0, len(rows), *(i for i in range(1, len(rows)) if steps[i] != steps[i - 1] and chance.random() < 0.4)}
    )
    earlier: list[EarlierShard] = []
    found: list[float] = []
    with TemporaryDirectory() as directory:
        for number, (begin, end) in enumerate(itertools.pairwise(cuts)):
            place = Path(directory) / str(number)
            place.mkdir()
            part = [np.array(row, np.uint16) for row in rows[begin:end]]
            spans = build_span_arrays(part, np.uint16, place)
            own_steps, own = np.array(steps[begin:end]), np.array([applied[s] for s in steps[begin:end]])
            found += seen_shares(spans, own_steps, own, 0, earlier[::-1]).tolist()
            tail = seen_shares(spans, own_steps, own, len(part) - 1, earlier)
            assert tail.tolist() == found[-1:]
            starts = np.cumsum([0, *map(len, part)])
            filter_words = bloom_filter(anchors(np.concatenate(part), starts)[0])
            earlier.append(
                EarlierShard(spans=spans, anchors=filter_words, chosen=Filter(first=0, last=len(part), passing=own))
            )
    assert found == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from([1, 2, 3, 60_000]))
def test_texts_that_share_50_tokens_share_an_anchor_there(seed: int, alphabet: int) -> None:
    rng = np.random.default_rng(seed)
    shared = rng.integers(0, alphabet, SEEN_LENGTH)
    before, after = rng.integers(0, alphabet, 80), rng.integers(0, alphabet, 30)
    one, other = np.concatenate([before, shared]).astype(np.uint16), np.concatenate([shared, after]).astype(np.uint16)
    words = bloom_filter(anchors(one, np.array([0, len(one)]))[0])
    hashes, positions = anchors(other, np.array([0, len(other)]))
    inside = in_bloom_filter(words, hashes) & (positions + 32 <= SEEN_LENGTH)
    assert inside.any()


def test_a_filter_denies_nearly_all_that_it_does_not_know() -> None:
    rng = np.random.default_rng(0)
    hashes, others = (rng.integers(0, 1 << 64, 100_000, np.uint64) for _ in range(2))
    words = bloom_filter(hashes)
    assert in_bloom_filter(words, hashes).all()
    assert in_bloom_filter(words, np.sort(others)).mean() < 0.01
    assert not in_bloom_filter(bloom_filter(hashes[:0]), others).any()


def make_run(run_dir: Path) -> None:
    """Two attempts, the second resumes from step 6 of the first's 9; a skipped step; pieces that come back."""
    chance = random.Random(5)
    pieces = blocks(chance, 30)
    spec = RunSpec(sequence_length=110, vocab_size=40, run_id="seen", config={})

    def steps(number: int) -> list[MadeStep]:
        return [
            MadeStep(
                microbatches={
                    rank: [np.array([row_of(chance, pieces, 110, 30) for _ in range(2)])] for rank in range(2)
                },
                status=StepStatus.SKIPPED_UPDATE if index == 1 else StepStatus.APPLIED,
            )
            for index in range(number)
        ]

    make_attempt(run_dir, spec, steps(9), num_writers=2)
    make_attempt(run_dir, spec, steps(5), num_writers=2, resume=ResumeToken(run_id="seen", attempt=1, global_step=6))


def test_a_run_with_a_rollback_indexed_at_once_and_bit_by_bit(tmp_path: Path) -> None:
    """The shares in the catalog are those of the export's rows, by lineage; appending changes nothing."""
    make_run(tmp_path / "once")
    rows = all_rows(tmp_path / "once")
    expected = {}
    for row in rows:
        earlier = [
            other for other in rows
            if other.status is StepStatus.APPLIED and other.address.global_step < row.address.global_step
            and (other.address.attempt == row.address.attempt or (row.address.attempt == 2 and other.address.global_step <= 6))
        ]  # fmt: skip
        known = {window for other in earlier for window in windows(other.tokens.tolist())}
        expected[str(row.address)] = share(row.tokens.tolist(), known)
    assert sum(0 < value < 1 for value in expected.values()) > 10
    for shard_rows, jobs in ((1000, 1), (8, 2)):
        index = tmp_path / "once" / "index"
        if index.exists():
            index.rename(tmp_path / f"old-{shard_rows}")
        update_index(tmp_path / "once", IndexOptions(shard_tokens=110 * shard_rows, jobs=jobs))
        found = IndexReader.open(tmp_path / "once").sql("SELECT address, seen_share FROM sequences")
        assert {row["address"]: row["seen_share"] for row in found} == pytest.approx(expected)
