"""Thinned steps against a plain rewriting of the rule over the steps read one by one."""

import math

import numpy as np
import pytest

from indexer.build.update import update_index
from indexer.reader import IndexReader
from indexer.steps import thinned as thinned_steps
from indexer.steps.steps import Step, read_steps
from indexer.steps.thinned import METRICS, MIN_POINTS, STEPS_OF_EACH_METRIC, thin_steps
from tests.support.export_maker import MadeStep, make_attempt
from train_hooks.export_format.writing.attempts import RunSpec

NUM_STEPS = 400
ROW = np.arange(8).reshape(1, 8)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> IndexReader:
    """A falling loss with spikes, one early and five late values that are none, and a metric that is not always there."""
    run_dir = tmp_path_factory.mktemp("thinned")
    rng = np.random.default_rng(3)
    loss = 2 + 4 * np.exp(-np.arange(NUM_STEPS) / 80) + 0.02 * rng.normal(size=NUM_STEPS)
    loss[[60, 61, 200, 333]] += 3
    loss[[7, 300, 301, 302, 303, 304]] = [np.nan, np.inf, np.inf, np.nan, -np.inf, np.inf]
    norm = rng.integers(1, 4, NUM_STEPS).astype(float)
    steps = [
        MadeStep(
            microbatches={0: [ROW]},
            metrics={"loss": loss[index], **({"grad_norm": norm[index]} if index % 7 else {}), "lr": 1e-3},
        )
        for index in range(NUM_STEPS)
    ]
    make_attempt(run_dir, RunSpec(sequence_length=8, vocab_size=100, run_id="thinned", config={}), steps)
    update_index(run_dir)
    return IndexReader.open(run_dir)


def by_the_book(steps: tuple[Step, ...], max_points: int) -> list[int]:
    """Global steps that the rule of the module's docstring keeps."""
    if len(steps) <= max_points:
        return [step.global_step for step in steps]
    size = -(-len(steps) // ((max_points - 2) // (STEPS_OF_EACH_METRIC * len(METRICS))))
    kept = {steps[0].global_step, steps[-1].global_step, *(step.global_step for step in steps if step.spikes)}
    for begin in range(0, len(steps), size):
        for metric in METRICS:
            known = [(getattr(step, metric), step.global_step) for step in steps[begin : begin + size]]
            finite = sorted(pair for pair in known if pair[0] is not None and math.isfinite(pair[0]))
            if finite:
                low, middle, high = (finite[place][0] for place in (0, (len(finite) - 1) // 2, -1))
                kept.add(min(step for value, step in finite if value == low))
                kept.add(finite[(len(finite) - 1) // 2][1])
                kept.add(max(step for value, step in finite if value == high))
                assert low <= middle <= high
            kept |= set([step for value, step in known if value is not None and not math.isfinite(value)][:1])
    return sorted(kept)


@pytest.mark.parametrize("max_points", [MIN_POINTS, 26, 60, 150, NUM_STEPS - 1, NUM_STEPS, 10_000])
def test_thinned_as_the_rule_says(reader: IndexReader, max_points: int) -> None:
    everything = read_steps(reader).steps
    found = thin_steps(reader, max_points)
    assert [step.global_step for step in found.steps.steps] == by_the_book(everything, max_points)
    by_number = {step.global_step: step for step in everything}
    for step in found.steps.steps:
        assert repr(step) == repr(by_number[step.global_step]), "each is a step as it was"
    spikes = sum(bool(step.spikes) for step in everything)
    assert (found.num_steps, found.num_spikes) == (NUM_STEPS, spikes) and spikes >= 9
    assert len(found.steps.steps) <= max(max_points, 0) + spikes
    assert any(step.global_step == 8 for step in found.steps.steps), "the NaN that is too early to be a spike"


def test_a_part_of_them_and_spikes_alone(reader: IndexReader) -> None:
    part = thin_steps(reader, 20, first_step=101, last_step=350)
    whole = read_steps(reader, first_step=101, last_step=350).steps
    assert [step.global_step for step in part.steps.steps] == by_the_book(whole, 20) and part.num_steps == 250
    spikes = read_steps(reader, only_spikes=True).steps
    assert repr(thin_steps(reader, 20, only_spikes=True).steps.steps) == repr(spikes)


def test_too_many_spikes(reader: IndexReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thinned_steps, "MAX_SPIKES", 4)
    everything = read_steps(reader).steps
    size = -(-NUM_STEPS // 2)
    strongest = []
    for begin in (0, size):
        spikes = [step for step in everything[begin : begin + size] if step.spikes]
        ranked = sorted(spikes, key=lambda step: -max(spike.deviations for spike in step.spikes))
        strongest += [step.global_step for step in ranked[:2]]
    found = thin_steps(reader, 2 + 2 * STEPS_OF_EACH_METRIC * len(METRICS))
    given = {step.global_step for step in found.steps.steps}
    assert set(strongest) <= given and len(given) <= 26 + 4 and found.num_spikes > 4


def test_pages_of_steps(reader: IndexReader) -> None:
    everything = read_steps(reader).steps
    for only_spikes in (False, True):
        steps = [step for step in everything if step.spikes or not only_spikes]
        found: list[Step] = []
        after = None
        while page := read_steps(reader, after=after, limit=37, only_spikes=only_spikes).steps:
            found += page
            after = (page[-1].global_step, page[-1].attempt)
        assert repr(found) == repr(steps)
