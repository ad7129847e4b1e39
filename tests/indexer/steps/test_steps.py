"""Spikes against a plain rewriting of the rule, planted ones, and smooth noise; steps of a run with a rollback."""

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.build.update import update_index
from indexer.reader import IndexReader
from indexer.steps import steps
from indexer.steps.steps import MIN_WINDOW, THRESHOLD, WINDOW, find_spikes, read_steps
from tests.support.export_maker import MadeStep, make_attempt
from train_hooks import StepStatus
from train_hooks.export_format.errors import QueryError
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec


def spikes_by_the_book(values: list[float]) -> dict[int, tuple[float, float]]:
    """The rule of the module's docstring, value by value."""
    found = {}
    for index, value in enumerate(values):
        before = [other for other in values[:index] if math.isfinite(other)][-WINDOW:]
        if len(before) < MIN_WINDOW:
            continue
        if not math.isfinite(value):
            found[index] = (statistics.median(before), math.inf)
            continue
        half = len(before) // 2
        slope = statistics.median(b - a for a, b in zip(before[:half], before[-half:], strict=True)) / (
            len(before) - half
        )
        middle = (len(before) - 1) / 2
        level = [other - slope * (place - middle) for place, other in enumerate(before)]
        center = statistics.median(level)
        spread = 1.4826 * statistics.median(abs(other - center) for other in level)
        spread = max(spread, 0.01 * abs(center), float(np.finfo(float).tiny))
        expected = center + max(slope, 0) * (len(before) + 1) / 2
        if (value - expected) / spread > THRESHOLD:
            found[index] = (expected, (value - expected) / spread)
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 140), st.sampled_from([0.0, 0.02, 0.3]))
def test_spikes_are_those_of_the_rule(seed: int, num: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    values = (
        3 + 2 * np.exp(-np.arange(num) / 30) + noise * rng.normal(size=num) + (rng.random(num) < 0.05) * rng.random(num)
    )
    values[rng.random(num) < 0.03] = rng.choice([np.nan, np.inf, -np.inf])
    found, expected = find_spikes(values), spikes_by_the_book(values.tolist())
    assert found.keys() == expected.keys()
    for index, (center, deviations) in expected.items():
        assert found[index] == pytest.approx((center, deviations), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**9), st.sampled_from(["cauchy", "ties", "falling", "negative", "huge"]))
def test_candidates_miss_no_spike(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    values = {
        "cauchy": rng.standard_cauchy(300), "ties": rng.integers(0, 3, 300).astype(float) ** 3,
        "falling": -np.arange(300.0) + rng.standard_cauchy(300), "negative": -5 + rng.gamma(0.5, 0.5, 300) ** 2,
        "huge": np.where(rng.random(300) < 0.1, 1e300, 1e-300) * rng.random(300),
    }[kind]  # fmt: skip
    found = find_spikes(values)
    assert found.keys() == spikes_by_the_book(values.tolist()).keys()
    everywhere = steps._spikes_at(values, np.arange(WINDOW, 300), WINDOW, np.arange(300))
    assert {index: spike for index, spike in found.items() if index >= WINDOW} == everywhere


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).standard_cauchy(400)
    whole = find_spikes(values)
    monkeypatch.setattr(steps, "BATCH", 7)
    assert find_spikes(values) == whole and len(whole) > 5


def test_planted_spikes_are_found_and_smooth_noise_has_none() -> None:
    rng = np.random.default_rng(7)
    curve = 2 + 6 * np.exp(-np.arange(100_000) / 10_000)
    values = curve + 0.05 * rng.normal(size=len(curve))
    planted = {500, 501, 502, 30_000, 99_999}
    values[list(planted)] += 1.0
    found = set(find_spikes(values))
    assert planted <= found
    assert len(found - planted) <= len(values) / 10_000
    early = sum(len(find_spikes(3 + 0.1 * rng.normal(size=60))) for _ in range(200))
    assert early <= 200 * 40 / 1000, "short windows know less"


def test_a_warm_up_and_a_flat_line_have_none() -> None:
    rng = np.random.default_rng(0)
    rising = [np.linspace(0.1, 2, 100) * (1 + 0.01 * rng.normal(size=100)) for _ in range(50)]
    assert sum(len(find_spikes(values)) for values in rising) <= 5
    assert find_spikes(np.full(200, 0.3)) == {}
    jumps = np.full(200, 0.3)
    jumps[[100, 150]] = 0.301, 0.4
    assert set(find_spikes(jumps)) == {150}


LENGTH = 8


def run_with_a_rollback(run_dir: Path) -> None:
    """Attempt 1 jumps at step 45 and goes on to 50; attempt 2 resumes from step 40 and jumps at step 52."""
    spec = RunSpec(sequence_length=LENGTH, vocab_size=100, run_id="r", config={})
    rng = np.random.default_rng(0)

    def made(losses: list[float | None], skipped: int | None = None) -> list[MadeStep]:
        return [
            MadeStep(
                microbatches={0: [rng.integers(0, 100, (1, LENGTH))]},
                metrics=None if loss is None else {"loss": loss, "grad_norm": 1.0},
                status=StepStatus.SKIPPED_UPDATE if number == skipped else StepStatus.APPLIED,
            )
            for number, loss in enumerate(losses)
        ]

    first: list[float | None] = [2.0 + 0.01 * (step % 3) for step in range(1, 51)]
    first[44], first[10] = 9.0, None
    make_attempt(run_dir, spec, made(first, skipped=20))
    second: list[float | None] = [2.0 + 0.01 * (step % 3) for step in range(41, 56)]
    second[11], second[13] = 5.0, float("nan")
    make_attempt(run_dir, spec, made(second), resume=ResumeToken(run_id="r", attempt=1, global_step=40))
    update_index(run_dir)


def test_steps_of_a_run_with_a_rollback(tmp_path: Path) -> None:
    run_with_a_rollback(tmp_path / "run")
    reader = IndexReader.open(tmp_path / "run")
    canonical = read_steps(reader).steps
    assert [(step.attempt, step.global_step) for step in canonical] == [
        *((1, step) for step in range(1, 41)), *((2, step) for step in range(41, 56))
    ]  # fmt: skip
    assert canonical[10].loss is None and canonical[20].status == "skipped_update"
    assert [(step.global_step, [spike.metric for spike in step.spikes]) for step in canonical if step.spikes] == [
        (52, ["loss"]), (54, ["loss"])
    ]  # fmt: skip
    assert canonical[51].spikes[0].value == 5.0 and canonical[53].spikes[0].deviations == math.inf
    everything = read_steps(reader, all_steps=True, only_spikes=True).steps
    assert [(step.attempt, step.global_step, step.canonical) for step in everything] == [
        (1, 45, False), (2, 52, True), (2, 54, True)
    ]  # fmt: skip
    of_first = read_steps(reader, attempt=1, first_step=42, last_step=45).steps
    assert [step.global_step for step in of_first] == [42, 43, 44, 45] and of_first[-1].spikes
    assert read_steps(reader, first_step=52, last_step=52).steps[0].spikes == canonical[51].spikes
    with pytest.raises(QueryError, match=r"attempt of \[1, 2\], found 3"):
        read_steps(reader, attempt=3)
    plain = read_steps(reader, first_step=54, last_step=54).to_json()["steps"][0]
    assert (plain["loss"], plain["spikes"][0]["deviations"]) == ("nan", "inf")
