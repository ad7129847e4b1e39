"""Planted faults are named first, without being told; runs that lack what an explanation would like to have."""

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from indexer.build.update import IndexOptions, update_index
from indexer.reader import IndexReader
from indexer.selection.visibility import EVERYTHING, Visibility
from indexer.steps.explain import StepExplanation, explain_step, reading
from tests.conftest import LENGTH as PACKED
from tests.conftest import byte_level_bpe, pack, read_documents
from tests.support.export_maker import MadeStep, make_attempt
from train_hooks import Segment
from train_hooks.export_format.errors import QueryError
from train_hooks.export_format.records import SequenceAddress
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec

STEPS, WRITERS, SLOTS, VOCABULARY = 40, 2, 4, 2000
GARBAGE, REPEAT, FOREIGN = 30, 34, 37
Rows = tuple[np.ndarray, list[list[Segment]]]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[IndexReader, dict[int, set[str]]]:
    """A run on real text, and by step the addresses of its faulty sequences.

    Step 30: noise in 2 of 8 rows; step 34: one document over and over in 3 rows; step 37: Japanese among English in 2.
    """
    directory = tmp_path_factory.mktemp("planted")
    english = {**read_documents("devils-dictionary", 400), **read_documents("pride-and-prejudice", 4)}
    japanese = read_documents("tatoeba-ja", 4)
    tokenizer = byte_level_bpe([*english.values(), *japanese.values()], VOCABULARY)
    tokenizer.save(str(directory / "tokenizer.json"))
    rows, segments = pack(english, tokenizer)
    other, other_segments = pack(japanese, tokenizer)
    per_step = WRITERS * SLOTS
    assert len(rows) >= STEPS * per_step and len(other) >= 4
    rng, faulty, steps = np.random.default_rng(0), {}, []
    order = rng.permutation(len(rows))
    rows, segments = rows[order], [segments[row] for row in order.tolist()]
    for step in range(1, STEPS + 1):
        places = range((step - 1) * per_step, step * per_step)
        tokens, owners = rows[places.start : places.stop].copy(), [list(segments[place]) for place in places]
        bad = {GARBAGE: (1, 6), REPEAT: (0, 3, 5), FOREIGN: (2, 7)}.get(step, ())
        for number, place in enumerate(bad):
            if step == GARBAGE:
                tokens[place] = rng.integers(0, VOCABULARY, PACKED)
            elif step == REPEAT:
                tokens[place] = np.resize(rows[5][:20], PACKED)
                first = segments[5][0]
                owners[place] = [
                    Segment(
                        start=start, length=min(20, PACKED - start), source=first.source, document_id=first.document_id,
                        document_token_offset=first.document_token_offset,
                    )
                    for start in range(0, PACKED, 20)
                ]  # fmt: skip
            else:
                tokens[place], owners[place] = other[number], list(other_segments[number])
        faulty[step] = {f"planted/a1/s{step}/r{place // SLOTS}/m0/q{place % SLOTS}" for place in bad}
        losses = [9.0 if place in bad and step == GARBAGE else 4.0 + rng.normal() / 10 for place in range(per_step)]
        steps.append(
            MadeStep(
                microbatches={rank: [tokens[rank * SLOTS : (rank + 1) * SLOTS]] for rank in range(WRITERS)},
                segments={rank: [owners[rank * SLOTS : (rank + 1) * SLOTS]] for rank in range(WRITERS)},
                losses={rank: [losses[rank * SLOTS : (rank + 1) * SLOTS]] for rank in range(WRITERS)},
                metrics={"loss": float(np.mean(losses)), "grad_norm": 1 + rng.random() / 10},
            )
        )
    spec = RunSpec(
        sequence_length=PACKED,
        vocab_size=VOCABULARY,
        run_id="planted",
        tokenizer=directory / "tokenizer.json",
        config={},
    )
    make_attempt(directory / "run", spec, steps, num_writers=WRITERS)
    update_index(directory / "run", IndexOptions(shard_tokens=PACKED * per_step * 11))
    return IndexReader.open(directory / "run"), faulty


def first_rows(found: StepExplanation, number: int) -> set[str]:
    return {row.address for row in found.rows[:number]}


def test_noise_is_named_first(planted: tuple[IndexReader, dict[int, set[str]]]) -> None:
    reader, faulty = planted
    found = explain_step(reader, GARBAGE)
    assert first_rows(found, 2) == faulty[GARBAGE]
    reasons = {reason.feature for reason in found.rows[0].reasons}
    assert {"loss", "surprisal", "new_pair_share"} <= reasons
    assert found.rows[1].score > 3 * (found.rows[2].score if len(found.rows) > 2 else 0)
    assert [spike.metric for spike in found.spikes] == ["loss"]
    assert (found.window_first_step, found.window_last_step, found.window_num_steps) == (1, 29, 29)
    assert found.features[0].name in ("surprisal", "new_pair_share", "loss") and found.features[0].deviations > 5


def test_a_repeated_document_is_named_first(planted: tuple[IndexReader, dict[int, set[str]]]) -> None:
    reader, faulty = planted
    found = explain_step(reader, REPEAT, window=20)
    assert first_rows(found, 3) == faulty[REPEAT]
    assert found.window_first_step == 14
    document = found.documents[0]
    assert (document.num_sequences, document.num_tokens, document.num_tokens_again) == (3, 3 * PACKED, 3 * PACKED)
    assert {"repeated_share", "twin_share", "again_share"} <= {reason.feature for reason in found.rows[0].reasons}
    strongest = found.ngrams[0]
    assert strongest.count >= 9 and strongest.num_sequences >= 3 and strongest.g2 > 30
    assert strongest.text == reader.tokenizer.decode(list(strongest.token_ids))


def test_another_language_and_source_are_named_first(planted: tuple[IndexReader, dict[int, set[str]]]) -> None:
    reader, faulty = planted
    found = explain_step(reader, FOREIGN)
    assert first_rows(found, 2) == faulty[FOREIGN]
    assert {"kana_share", "source_surprise"} <= {reason.feature for reason in found.rows[0].reasons}
    shares = {source.source: source for source in found.sources}
    assert shares["tatoeba-ja"].share == pytest.approx(0.25, abs=0.01) and shares["tatoeba-ja"].window_share == 0
    assert found.source_g2 > 10 and found.source_rank < 0.1


def test_most_rows_of_ordinary_steps_are_no_news(planted: tuple[IndexReader, dict[int, set[str]]]) -> None:
    reader, faulty = planted
    scores = [
        row.score
        for step in range(12, STEPS + 1, 4)
        for row in explain_step(reader, step, limit=20).rows
        if row.address not in faulty[step] and step not in (GARBAGE, REPEAT, FOREIGN)
    ]
    worst_fault = min(
        row.score
        for step, rows in faulty.items()
        if rows
        for row in explain_step(reader, step).rows
        if row.address in rows
    )
    assert len(scores) < 0.75 * 8 * WRITERS * SLOTS
    assert np.quantile(scores, 0.95) < worst_fault


def test_of_large_steps_some_rows_are_read(
    planted: tuple[IndexReader, dict[int, set[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, _ = planted
    monkeypatch.setattr(reading, "MAX_STEP_TOKENS", PACKED * 3)  # 8 rows: every third is read, 3 of 8
    monkeypatch.setattr(reading, "MAX_WINDOW_TOKENS", PACKED * 20)
    subject = reading.explained_step(reader, GARBAGE, 12, None)
    step, window = reading.read_rows(reader, subject, EVERYTHING)
    assert step.read.tolist() == [0, 3, 6] and window.table.num_rows == 96
    steps = window.table.column("global_step").to_numpy()[window.read]
    assert sorted(set(steps.tolist())) == [19, 21, 23, 25, 27, 29] and len(window.read) == 6 * 3
    for rows in (step, window):
        for number, row in enumerate(rows.read.tolist()):
            tokens = reader.sequence(rows.table.column("address")[row].as_py()).tokens
            assert rows.tokens[rows.starts[number] : rows.starts[number + 1]].tolist() == tokens.tolist()
    found = explain_step(reader, GARBAGE, window=12)
    assert (found.num_sequences_read, found.window_num_sequences_read) == (3, 18)
    assert any(reason.feature == "loss" for row in found.rows for reason in row.reasons), "not of tokens: of every row"


def test_rows_with_something_hidden_are_not_there(planted: tuple[IndexReader, dict[int, set[str]]]) -> None:
    reader, faulty = planted
    japanese = Visibility(hidden_sources=frozenset({"tatoeba-ja"}))
    found = explain_step(reader, FOREIGN, visibility=japanese, limit=50)
    assert (found.num_sequences, found.num_sequences_hidden, found.window_num_sequences) == (6, 2, 36 * 8)
    assert not {row.address for row in found.rows} & faulty[FOREIGN]
    assert "tatoeba-ja" not in json.dumps(found.to_json()) and "kana_share" not in {
        r.feature for row in found.rows for r in row.reasons
    }
    assert "seen_share" not in {feature.name for feature in found.features}
    noisy = SequenceAddress.parse(min(faulty[GARBAGE]))
    hidden = Visibility(hidden_spans=frozenset({(noisy, 5, 6)}))
    later = explain_step(reader, GARBAGE + 1, window=1, visibility=hidden)
    assert later.window_num_sequences == 7
    tokens = set(reader.sequence(noisy).tokens.tolist())
    _, window = reading.read_rows(reader, reading.explained_step(reader, GARBAGE + 1, 1, None), hidden)
    assert len(window.read) == 7 and not tokens <= set(window.tokens.tolist())
    with pytest.raises(QueryError, match="no sequence that may be seen"):
        explain_step(reader, 2, visibility=Visibility(sources=frozenset()))


def ngram_counts(rows: Sequence[Sequence[int]], wanted: Sequence[int]) -> tuple[int, int]:
    """(occurrences, rows with one) by looking everywhere."""
    size = len(wanted)
    hits = [sum(tuple(row[i : i + size]) == tuple(wanted) for i in range(len(row) - size + 1)) for row in rows]
    return sum(hits), sum(hit > 0 for hit in hits)


def test_ngram_counts_and_g2_are_those_of_brute_force(planted: tuple[IndexReader, dict[int, set[str]]]) -> None:
    reader, _ = planted
    found = explain_step(reader, REPEAT, window=10, limit=30)

    def rows_of(condition: str) -> list[list[int]]:
        addresses = reader.sql(f"SELECT address FROM sequences WHERE {condition}")
        return [reader.sequence(row["address"]).tokens.tolist() for row in addresses]

    step, window = rows_of(f"global_step = {REPEAT}"), rows_of(f"global_step BETWEEN {REPEAT - 10} AND {REPEAT - 1}")
    assert len(found.ngrams) > 3
    for ngram in found.ngrams:
        count, num_rows = ngram_counts(step, ngram.token_ids)
        other, _ = ngram_counts(window, ngram.token_ids)
        assert (ngram.count, ngram.num_sequences, ngram.window_count) == (count, num_rows, other)
        size = len(ngram.token_ids)
        total, other_total = (len(rows) * (PACKED - size + 1) for rows in (step, window))
        expected = [(count + other) * part / (total + other_total) for part in (total, other_total)]
        parts = [a * math.log(a / e) for a, e in zip((count, other), expected, strict=True) if a]
        assert ngram.g2 == pytest.approx(2 * sum(parts)) and ngram.expected == pytest.approx(expected[0])


def test_json_is_plain(planted: tuple[IndexReader, dict[int, set[str]]]) -> None:
    reader, _ = planted
    plain = json.loads(json.dumps(explain_step(reader, GARBAGE).to_json(), allow_nan=False))
    assert plain["rows"][0]["reasons"][0]["text"] and plain["global_step"] == GARBAGE


def noise_run(run_dir: Path, change: Callable[[int, np.ndarray], np.ndarray]) -> IndexReader:
    """No tokenizer, no documents, no losses; 20 steps, then a second attempt from step 15."""
    spec = RunSpec(sequence_length=32, vocab_size=70_000, run_id="bare", config={})
    chance = random.Random(0)
    common = [chance.randrange(70_000) for _ in range(50)]

    def steps(first: int, last: int) -> list[MadeStep]:
        rows = [
            np.array([[chance.choice(common) for _ in range(32)] for _ in range(4)]) for _ in range(first, last + 1)
        ]
        return [MadeStep(microbatches={0: [change(step, row)]}) for step, row in enumerate(rows, first)]

    make_attempt(run_dir, spec, steps(1, 20))
    token = ResumeToken(run_id="bare", attempt=1, global_step=15)
    make_attempt(run_dir, spec, steps(16, 18), resume=token)
    update_index(run_dir)
    return IndexReader.open(run_dir)


def test_a_run_without_tokenizer_documents_and_losses_and_a_superseded_step(tmp_path: Path) -> None:
    def change(step: int, rows: np.ndarray) -> np.ndarray:
        if step == 19:  # in attempt 1 alone: superseded
            rows[2] = 69_000 + np.arange(32)
        return rows

    reader = noise_run(tmp_path / "run", change)
    found = explain_step(reader, 19, window=6)
    assert (found.attempt, found.canonical, found.loss, found.sources, found.documents) == (1, False, None, (), ())
    assert (found.window_first_step, found.window_last_step) == (13, 18)
    assert found.rows[0].address == "bare/a1/s19/r0/m0/q2"
    assert all(ngram.text is None for ngram in found.ngrams)
    newer = explain_step(reader, 17, window=4)
    assert (newer.attempt, newer.canonical, newer.window_first_step, newer.window_num_steps) == (2, True, 13, 4)
    older = explain_step(reader, 17, window=4, attempt=1)
    assert (older.attempt, older.canonical) == (1, False)


def test_a_loss_that_is_no_number_is_news(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 50, (12, 4, 32))
    losses = np.full((12, 4), 3.0)
    losses[11, 1], losses[11, 2], losses[5, 0] = np.nan, np.inf, np.nan
    steps = [
        MadeStep(microbatches={0: [row]}, losses={0: [loss]}) for row, loss in zip(rows, losses.tolist(), strict=True)
    ]
    make_attempt(tmp_path / "run", RunSpec(sequence_length=32, vocab_size=50, run_id="n", config={}), steps)
    update_index(tmp_path / "run")
    found = explain_step(IndexReader.open(tmp_path / "run"), 12)
    assert first_rows(found, 2) == {"n/a1/s12/r0/m0/q1", "n/a1/s12/r0/m0/q2"}
    assert all(row.reasons[0].text.startswith("no finite loss; more than in all 43 rows") for row in found.rows[:2])
    json.dumps(found.to_json(), allow_nan=False)


def test_steps_that_cannot_be_explained(tmp_path: Path) -> None:
    reader = noise_run(tmp_path / "run", lambda _, rows: rows)
    for step, window, attempt, message in (
        (1, 50, None, "no step before it"),
        (21, 50, None, "indexed step up to 20, found 21"),
        (5, 50, 2, "found 5"),
        (5, 50, 7, r"attempt of \[1, 2\]"),
        (5, 0, None, "window of 1"),
    ):
        with pytest.raises(QueryError, match=message):
            explain_step(reader, step, window=window, attempt=attempt)
