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

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from indexer.answers.plain_data import finite_data
from indexer.reader import IndexReader
from indexer.steps.spikes import spike_candidates
from train_hooks.export_format.errors import QueryError
from train_hooks.export_format.lineage import StepInterval, lineage

__all__ = [
    "MIN_WINDOW",
    "THRESHOLD",
    "WINDOW",
    "Spike",
    "Spikes",
    "Step",
    "Steps",
    "find_spikes",
    "read_steps",
    "rows_with_spikes",
    "spikes_of_run",
    "step_table",
    "steps_of_table",
]

WINDOW, MIN_WINDOW, THRESHOLD, FLOOR = 50, 20, 6.0, 0.01
BATCH = 16_384
LAST_STEP = 1 << 60
MAD_TO_SIGMA = 1.4826
METRICS = ("loss", "grad_norm")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spike:
    """A value far above those before it: `deviations` robust standard deviations above `expected`; infinity if not finite."""

    metric: str
    value: float
    expected: float
    deviations: float


Spikes: TypeAlias = Mapping[tuple[int, int], tuple[Spike, ...]]  # by (attempt, step)


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
        plain: dict[str, Any] = finite_data(self)
        return plain


def read_steps(
    reader: IndexReader,
    *,
    first_step: int | None = None,
    last_step: int | None = None,
    attempt: int | None = None,
    all_steps: bool = False,
    only_spikes: bool = False,
    after: tuple[int, int] | None = None,
    limit: int | None = None,
) -> Steps:
    """Canonical steps first_step to last_step, both included, or those of one attempt, or all.

    Spikes are found among the steps before each one on its own attempt's lineage, wherever the range begins. after, limit:
    at most so many, behind a (global_step, attempt). Raises QueryError for an attempt that is not indexed.
    """
    first = max(first_step or 0, 0 if after is None else after[0])
    table = step_table(reader, first, last_step, attempt=attempt, all_steps=all_steps)
    if after is not None:
        steps, attempts = (table.column(name).to_numpy() for name in ("global_step", "attempt"))
        table = table.filter(pa.array((steps > after[0]) | ((steps == after[0]) & (attempts > after[1]))))
    if limit is not None and not only_spikes:
        table = table.slice(0, limit)
    spikes = spikes_of_run(reader, first, LAST_STEP if last_step is None else last_step)
    if only_spikes:
        table = table.take(pa.array(rows_with_spikes(table, spikes)[:limit]))
    return steps_of_table(reader, table, spikes)


def step_table(
    reader: IndexReader, first_step: int, last_step: int | None, *, attempt: int | None, all_steps: bool
) -> pa.Table:
    """The view `steps` of the steps that `read_steps` names, in its order. Raises QueryError as it does."""
    if attempt is not None and attempt not in reader.generation.covered:
        raise QueryError(f"expected an attempt of {sorted(reader.generation.covered)}, found {attempt}")
    wanted = [first_step, LAST_STEP if last_step is None else last_step, attempt, attempt is None, all_steps]
    with reader.catalog() as connection:
        return connection.sql(
            "SELECT * FROM steps WHERE global_step BETWEEN ? AND ? AND (attempt = ? OR (? AND (canonical OR ?))) "
            "ORDER BY global_step, attempt",
            params=wanted,
        ).to_arrow_table()


def rows_with_spikes(table: pa.Table, spikes: Spikes) -> npt.NDArray[np.int64]:
    """Rows of a table of steps that are spikes, ascending, i64."""
    names = np.array(sorted((step, attempt) for attempt, step in spikes), np.int64).reshape(-1, 2)
    steps, attempts = (table.column(name).to_numpy() for name in ("global_step", "attempt"))
    near = np.flatnonzero(np.isin(steps, names[:, 0])).tolist()
    return np.array([place for place in near if (int(attempts[place]), int(steps[place])) in spikes], np.int64)


def steps_of_table(reader: IndexReader, table: pa.Table, spikes: Spikes) -> Steps:
    """The rows of a table of steps as records."""
    steps = (Step(**row, spikes=spikes.get((row["attempt"], row["global_step"]), ())) for row in table.to_pylist())
    return Steps(run_id=reader.info.run_id, generation=reader.generation.number, steps=tuple(steps))


def find_spikes(values: npt.NDArray[np.float64]) -> dict[int, tuple[float, float]]:
    """Index → (expected, deviations) of the spikes of a series, f64 [n], each among the finite values before it.

    A value that is not finite is a spike of infinite deviation once MIN_WINDOW finite ones stand before it.
    """
    finite = np.flatnonzero(np.isfinite(values))
    known = values[finite]
    spikes: dict[int, tuple[float, float]] = {}
    for place in range(MIN_WINDOW, min(WINDOW, len(finite))):
        spikes |= _spikes_at(known, np.array([place]), place, finite)
    if len(finite) > WINDOW:
        possible = spike_candidates(known, WINDOW, WINDOW, THRESHOLD, FLOOR, MAD_TO_SIGMA)
        candidates = WINDOW + np.flatnonzero(possible)
        for begin in range(0, len(candidates), BATCH):
            spikes |= _spikes_at(known, candidates[begin : begin + BATCH], WINDOW, finite)
    for index in np.flatnonzero(~np.isfinite(values)).tolist():
        place = int(np.searchsorted(finite, index))
        if place >= MIN_WINDOW:
            spikes[index] = (float(np.median(values[finite[max(0, place - WINDOW) : place]])), math.inf)
    return spikes


def _spikes_at(
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
    with np.errstate(over="ignore"):
        deviations = (values[places] - expected) / spread
    return {
        int(index_of[places[row]]): (float(expected[row]), float(deviations[row]))
        for row in np.flatnonzero(deviations > THRESHOLD).tolist()
    }


def spikes_of_run(reader: IndexReader, first_step: int, last_step: int) -> Spikes:
    """The spikes of the steps in a range, each judged by those before it on its attempt's lineage."""
    with reader.catalog() as connection:
        table = connection.sql(
            f"SELECT attempt, global_step, {', '.join(METRICS)} FROM steps ORDER BY 1, 2"
        ).to_arrow_table()
    attempts = [attempt.info for attempt in reader.run.attempts()]
    spikes: dict[tuple[int, int], tuple[Spike, ...]] = {}
    for metric in METRICS:
        known = table.filter(pc.is_valid(table.column(metric)))
        numbers, steps, values = (known.column(name).to_numpy() for name in ("attempt", "global_step", metric))
        for attempt in np.unique(numbers).tolist():
            parts = [_places(numbers, steps, interval) for interval in lineage(attempts, attempt)[:-1]]
            own = _places(numbers, steps, StepInterval(attempt=attempt, first_step=0, last_step=None))
            places = np.concatenate([*parts, own])
            begin, end = np.searchsorted(steps[own], [first_step, last_step + 1]) + len(places) - len(own)
            finite = np.flatnonzero(np.isfinite(values[places[:begin]]))
            context = int(finite[-WINDOW]) if len(finite) > WINDOW else 0
            for index, (expected, deviations) in find_spikes(values[places[context:end]]).items():
                if context + index >= begin:
                    place = int(places[context + index])
                    spike = Spike(metric=metric, value=float(values[place]), expected=expected, deviations=deviations)
                    key = (attempt, int(steps[place]))
                    spikes[key] = (*spikes.get(key, ()), spike)
    return spikes


def _places(
    attempts: npt.NDArray[np.int32], steps: npt.NDArray[np.int64], interval: StepInterval
) -> npt.NDArray[np.int64]:
    """Where the steps of an interval stand, in arrays sorted by attempt and step."""
    begin, end = (int(place) for place in np.searchsorted(attempts, [interval.attempt, interval.attempt + 1]))
    last = LAST_STEP if interval.last_step is None else interval.last_step
    first_place, last_place = np.searchsorted(steps[begin:end], [interval.first_step, last + 1]) + begin
    return np.arange(first_place, last_place)
