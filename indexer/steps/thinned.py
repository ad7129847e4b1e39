"""Steps of a run for a chart: as many as it can show, and all that stand out.

Up to `max_points` steps are all given. Of more, the range is cut into stretches of equally many steps, and each gives the
steps where a metric is least, greatest and in the middle (the lower median), and the first one where it is not finite, for
each of METRICS; the range gives its first and last step too. Whatever is given is a step as it was; nothing is averaged.

Spikes are given beyond that, all of them up to MAX_SPIKES. Of more, each stretch gives equally many of its own, those that
deviate most; of equal ones, such as losses that stay infinite, the first. So no stretch with a spike is without one.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from indexer.reader import IndexReader
from indexer.steps.steps import LAST_STEP, Spikes, Steps, rows_with_spikes, spikes_of_run, step_table, steps_of_table

__all__ = ["MAX_SPIKES", "MIN_POINTS", "ThinnedSteps", "thin_steps"]

METRICS = ("loss", "lr", "grad_norm")
STEPS_OF_EACH_METRIC = 4
MIN_POINTS = 2 + STEPS_OF_EACH_METRIC * len(METRICS)
MAX_SPIKES = 5000
Places = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ThinnedSteps:
    """Steps of those that were asked for. num_steps, num_spikes: how many there are, given or not."""

    steps: Steps
    num_steps: int
    num_spikes: int


def thin_steps(
    reader: IndexReader,
    max_points: int,
    *,
    first_step: int | None = None,
    last_step: int | None = None,
    attempt: int | None = None,
    all_steps: bool = False,
    only_spikes: bool = False,
) -> ThinnedSteps:
    """Up to `max_points` (at least MIN_POINTS) of the steps that `read_steps` gives, and their spikes. Raises as it does."""
    first, last = first_step or 0, LAST_STEP if last_step is None else last_step
    table = step_table(reader, first, last, attempt=attempt, all_steps=all_steps)
    spikes = spikes_of_run(reader, first, last)
    with_spikes = rows_with_spikes(table, spikes)
    if only_spikes:
        table = table.take(pa.array(with_spikes))
        with_spikes = np.arange(table.num_rows)
    if table.num_rows <= max_points:
        kept = np.arange(table.num_rows)
    else:
        num_stretches = max(1, (max_points - 2) // (STEPS_OF_EACH_METRIC * len(METRICS)))
        kept = np.unique(
            np.concatenate(
                [
                    [0, table.num_rows - 1],
                    *(_of_metric(table.column(metric), num_stretches) for metric in METRICS),
                    _strongest_spikes(table, spikes, with_spikes, num_stretches),
                ]
            )
        )
    steps = steps_of_table(reader, table.take(pa.array(kept)), spikes)
    return ThinnedSteps(steps=steps, num_steps=table.num_rows, num_spikes=len(with_spikes))


def _of_metric(column: pa.ChunkedArray, num_stretches: int) -> Places:
    """Where a metric is least, greatest, in the middle and first not finite, in each stretch."""
    values = column.to_numpy().astype(np.float64)
    size = -(-len(values) // num_stretches)
    unknown = np.zeros(len(values), np.bool_) if column.null_count == 0 else np.asarray(column.is_null())
    bad = ~np.isfinite(values) & ~unknown
    values = np.where(np.isfinite(values), values, np.nan)
    padded = np.pad(values, (0, -len(values) % size), constant_values=np.nan).reshape(-1, size)
    order = np.argsort(padded, axis=1, kind="stable")
    num_known = np.isfinite(padded).sum(axis=1)
    starts = np.arange(len(padded)) * size
    found = [
        (starts + np.take_along_axis(order, place[:, None], axis=1)[:, 0])[num_known > 0]
        for place in (np.zeros_like(num_known), (num_known - 1) // 2, num_known - 1)
    ]
    stretch, first = np.unique(np.flatnonzero(bad) // size, return_index=True)
    return np.concatenate([*found, np.flatnonzero(bad)[first] if len(stretch) else first]).astype(np.int64)


def _strongest_spikes(table: pa.Table, spikes: Spikes, places: Places, num_stretches: int) -> Places:
    """The spikes to keep: all, or of each stretch equally many."""
    if len(places) <= MAX_SPIKES:
        return places
    attempts, steps = (table.column(name).to_numpy()[places].tolist() for name in ("attempt", "global_step"))
    deviations = np.array([max(spike.deviations for spike in spikes[key]) for key in zip(attempts, steps, strict=True)])
    size = -(-table.num_rows // num_stretches)
    stretches = places // size
    order = np.lexsort((places, -deviations, stretches))
    begins = np.searchsorted(stretches[order], stretches[order])
    kept: Places = places[order[np.arange(len(order)) - begins < max(1, MAX_SPIKES // num_stretches)]]
    return kept
