"""Steps of a run: status, loss, gradient norm, and which of them are spikes.

A step is a spike of a metric if its value is not finite, or lies more than THRESHOLD robust standard deviations above what
is expected from the WINDOW values before it on the lineage of its attempt:

- the trend of the window is the median of the differences between its second and first half, and is taken out;
- *expected* is the median of what is left, moved on by the trend where that rises (a falling one is not relied on);
- the robust standard deviation is 1.4826 times the median absolute deviation, and at least FLOOR times the expected value,
  so that a metric that hardly moves has no spikes of a millionth.

Fewer than MIN_WINDOW values before give no verdict. Spikes stay in the window: a median does not mind a few. Gaussian noise
on a smooth curve gives fewer than one spike in 10,000 steps.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.index_reader import IndexReader
from train_hooks.export_format.errors import QueryError
from train_hooks.export_format.lineage import lineage

__all__ = ["MIN_WINDOW", "THRESHOLD", "WINDOW", "Spike", "Step", "Steps", "find_spikes", "read_steps"]

WINDOW, MIN_WINDOW, THRESHOLD, FLOOR = 50, 20, 6.0, 0.01
BATCH = 16_384
MAD_TO_SIGMA = 1.4826
METRICS = ("loss", "grad_norm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spike:
    """A value far above those before it: `deviations` robust standard deviations above `expected`; infinity if not finite."""

    metric: str
    value: float
    expected: float
    deviations: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One global step. Metrics are None where the trainer gave none."""

    attempt: int
    global_step: int
    status: str
    canonical: bool
    loss: float | None
    lr: float | None
    grad_norm: float | None
    num_tokens: int
    num_sequences: int
    unix_time_s: float | None
    spikes: tuple[Spike, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Steps of a run in order of (global_step, attempt), with their spikes."""

    run_id: str
    generation: int
    steps: tuple[Step, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; numbers that JSON lacks are strings."""
        return {"run_id": self.run_id, "generation": self.generation, "steps": [_plain(step) for step in self.steps]}


def read_steps(
    reader: IndexReader,
    *,
    first_step: int | None = None,
    last_step: int | None = None,
    attempt: int | None = None,
    all_steps: bool = False,
    only_spikes: bool = False,
) -> Steps:
    """Canonical steps first_step to last_step, both included, or those of one attempt, or all.

    Spikes are found among the steps before each one on its own attempt's lineage, wherever the range begins. Raises
    QueryError for an attempt that is not indexed.
    """
    rows = reader.sql("SELECT * FROM steps ORDER BY global_step, attempt")
    if attempt is not None and attempt not in reader.generation.covered:
        raise QueryError(f"expected an attempt of {sorted(reader.generation.covered)}, found {attempt}")
    spikes = _spikes_of_run(reader, rows)
    steps = []
    for row in rows:
        wanted = row["attempt"] == attempt if attempt is not None else row["canonical"] or all_steps
        inside = (first_step is None or row["global_step"] >= first_step) and (
            last_step is None or row["global_step"] <= last_step
        )
        found = spikes.get((row["attempt"], row["global_step"]), ())
        if wanted and inside and (found or not only_spikes):
            steps.append(Step(**row, spikes=found))
    return Steps(run_id=reader.info.run_id, generation=reader.generation.number, steps=tuple(steps))


def find_spikes(values: npt.NDArray[np.float64]) -> dict[int, tuple[float, float]]:
    """Index → (expected, deviations) of the spikes of a series, f64 [n], each among the finite values before it.

    A value that is not finite is a spike of infinite deviation once MIN_WINDOW finite ones stand before it.
    """
    finite = np.flatnonzero(np.isfinite(values))
    spikes: dict[int, tuple[float, float]] = {}
    for place in range(MIN_WINDOW, min(WINDOW, len(finite))):
        spikes |= _judged(values[finite], np.array([place]), place, finite)
    for begin in range(WINDOW, len(finite), BATCH):
        spikes |= _judged(values[finite], np.arange(begin, min(begin + BATCH, len(finite))), WINDOW, finite)
    for index in np.flatnonzero(~np.isfinite(values)).tolist():
        place = int(np.searchsorted(finite, index))
        if place >= MIN_WINDOW:
            spikes[index] = (float(np.median(values[finite[max(0, place - WINDOW) : place]])), math.inf)
    return spikes


def _judged(
    values: npt.NDArray[np.float64], places: npt.NDArray[np.int64], window: int, index_of: npt.NDArray[np.int64]
) -> dict[int, tuple[float, float]]:
    """The spikes among values[places], each against the `window` values before it."""
    before = np.lib.stride_tricks.sliding_window_view(values, window)[places - window]
    half = window // 2
    slope = np.median(before[:, -half:] - before[:, :half], axis=1, keepdims=True) / (window - half)
    level = before - slope * (np.arange(window) - (window - 1) / 2)
    center = np.median(level, axis=1, keepdims=True)
    spread = MAD_TO_SIGMA * np.median(np.abs(level - center), axis=1)
    spread = np.maximum(np.maximum(spread, FLOOR * np.abs(center[:, 0])), np.finfo(np.float64).tiny)
    expected = (center + np.maximum(slope, 0) * (window + 1) / 2)[:, 0]
    deviations = (values[places] - expected) / spread
    return {
        int(index_of[places[row]]): (float(expected[row]), float(deviations[row]))
        for row in np.flatnonzero(deviations > THRESHOLD).tolist()
    }


def _spikes_of_run(reader: IndexReader, rows: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], tuple[Spike, ...]]:
    """(attempt, step) → spikes, each attempt's steps judged by those before them on its lineage."""
    attempts = [attempt.info for attempt in reader.run.attempts()]
    spikes: dict[tuple[int, int], tuple[Spike, ...]] = {}
    for metric in METRICS:
        of_attempt: dict[int, list[Mapping[str, Any]]] = {}
        for row in rows:
            if row[metric] is not None:
                of_attempt.setdefault(row["attempt"], []).append(row)
        for attempt, own in of_attempt.items():
            before: list[Mapping[str, Any]] = []
            for interval in reversed(lineage(attempts, attempt)[:-1]):
                of_parent = of_attempt.get(interval.attempt, ())
                inside = [row for row in of_parent if interval.holds(interval.attempt, row["global_step"])]
                before = inside[len(before) - WINDOW :] + before
                if len(before) >= WINDOW:
                    break
            values = np.array([row[metric] for row in [*before, *own]], np.float64)
            for index, (expected, deviations) in find_spikes(values).items():
                if index >= len(before):
                    place = (attempt, own[index - len(before)]["global_step"])
                    value = float(values[index])
                    spike = Spike(metric=metric, value=value, expected=expected, deviations=deviations)
                    spikes[place] = (*spikes.get(place, ()), spike)
    return spikes


def _plain(step: Step) -> dict[str, Any]:
    plain = dataclasses.asdict(step)
    for record in [plain, *plain["spikes"]]:
        for name, value in record.items():
            if isinstance(value, float) and not math.isfinite(value):
                record[name] = str(value)
    return plain
