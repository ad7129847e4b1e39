"""What an explanation reads: rows of the catalog, and tokens from the shards, of a step and of the window before it."""

import itertools
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from indexer.reader import IndexReader
from indexer.selection.visibility import EVERYTHING, Visibility
from indexer.steps.steps import Step, read_steps
from indexer.storage.shard import Shard
from train_hooks.export_format.errors import QueryError
from train_hooks.export_format.lineage import lineage

__all__ = [
    "MAX_STEP_TOKENS",
    "MAX_WINDOW_TOKENS",
    "ExplainedStep",
    "Rows",
    "explained_step",
    "read_rows",
    "read_segments",
]

MAX_STEP_TOKENS, MAX_WINDOW_TOKENS = 1_000_000, 4_000_000
_ORDER = "global_step, attempt, dp_rank, microbatch, slot"
Place = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplainedStep:
    """The step to explain, and (attempt, step) of the steps before it that it is compared with, ascending."""

    step: Step
    window: tuple[Place, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Sequences of some steps in the order of (step, address), and tokens of those that were read.

    table: columns of the view `sequences`. read i64 [r]: which rows were read; tokens of row read[i] are
    tokens[starts[i]:starts[i + 1]].
    """

    table: pa.Table
    read: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.unsignedinteger]
    starts: npt.NDArray[np.int64]

    def column(self, name: str) -> npt.NDArray[np.float64]:
        """A column of numbers, f64: NaN for null, infinity for what is no number."""
        column = self.table.column(name).cast(pa.float64())
        return np.asarray(pc.if_else(pc.is_nan(column), float("inf"), column).to_numpy())


def explained_step(reader: IndexReader, global_step: int, window: int, attempt: int | None) -> ExplainedStep:
    """Find the step (the canonical one; else the newest of that number) and the `window` steps with rows before it.

    Raises QueryError where there is no such step, it has no rows, or none stands before it.
    """
    found = read_steps(reader, first_step=global_step, last_step=global_step, attempt=attempt, all_steps=True).steps
    step = max(found, key=lambda step: (step.canonical, step.attempt), default=None)
    if step is None:
        last = max(reader.generation.covered.values())
        raise QueryError(f"expected an indexed step up to {last}, found {global_step}; see `kiseki steps`")
    if not step.num_sequences:
        raise QueryError(f"step {global_step} of attempt {step.attempt} has no sequences to explain")
    places: list[Place] = []
    attempts = [info.info for info in reader.run.attempts()]
    for interval in reversed(lineage(attempts, step.attempt, global_step - 1)):
        rows = reader.sql(
            "SELECT global_step FROM stored_steps WHERE attempt = ? AND global_step BETWEEN ? AND ? AND num_sequences > 0 "
            "ORDER BY 1 DESC LIMIT ?",
            [interval.attempt, interval.first_step, interval.last_step, window - len(places)],
        )
        places += [(interval.attempt, row["global_step"]) for row in rows]
    if not places:
        raise QueryError(f"step {global_step} of attempt {step.attempt} has no step before it to be compared with")
    return ExplainedStep(step=step, window=tuple(sorted(places, key=lambda place: place[::-1])))


def read_rows(reader: IndexReader, subject: ExplainedStep, visibility: Visibility) -> tuple[Rows, Rows]:
    """(sequences of the step, sequences of the window); those of which something is hidden are left out.

    Where the step has too many tokens, those of every n-th of its rows are read, and of the window's rows alike, so that
    both have the same number of neighbours; of the window whole steps are left out then, evenly. `visibility` is as
    `IndexReader.visible_under` gives it. Raises QueryError where nothing is left.
    """
    places = [(subject.step.attempt, subject.step.global_step)]
    step, window = (
        _placed(reader, _query(reader, "sequences", of_these, _ORDER), visibility)
        for of_these in (places, subject.window)
    )
    for table, what in ((step, f"step {subject.step.global_step}"), (window, "the steps before")):
        if not table.num_rows:
            raise QueryError(f"{what}: no sequence that may be seen")
    row_stride = _stride(_num_tokens(step), MAX_STEP_TOKENS)
    step_stride = _stride(_num_tokens(window) // row_stride, MAX_WINDOW_TOKENS)
    kept = set(subject.window[::-1][::step_stride])
    return _read(reader, step, row_stride, None), _read(reader, window, row_stride, kept)


def _placed(reader: IndexReader, table: pa.Table, visibility: Visibility) -> pa.Table:
    """The rows that are wholly visible, with `ordinal`, their place in a shard; -1 where no shard that opens has them."""
    ordinals = np.full(table.num_rows, -1, np.int64)
    visible = np.full(table.num_rows, visibility == EVERYTHING)
    for place, begin, end in _steps_of(table):
        shard = _shard_of(reader, place)
        if shard is not None:
            first = int(np.searchsorted(shard.steps, place[1]))  # a step's rows stand there as in the table
            ordinals[begin:end] = np.arange(first, first + end - begin)
            stretches = reader.visible_shard(shard, visibility)
            starts = shard.spans.sequence_starts[first : first + end - begin + 1]
            visible[begin:end] = stretches is None or np.logical_and.reduceat(
                stretches.mask(int(starts[0]), int(starts[-1])), starts[:-1] - starts[0]
            )
    return table.append_column("ordinal", pa.array(ordinals)).filter(pa.array(visible))


def _num_tokens(table: pa.Table) -> int:
    return int(pc.sum(table.column("num_tokens")).as_py() or 0)


def _stride(num_tokens: int, most: int) -> int:
    return max(1, -(-num_tokens // most))


def _read(reader: IndexReader, table: pa.Table, row_stride: int, kept: Set[Place] | None) -> Rows:
    """Read every row_stride-th row of each step, of the `kept` steps alone if they are given."""
    pieces: list[npt.NDArray[np.unsignedinteger]] = []
    read: list[int] = []
    ordinals = table.column("ordinal").to_pylist()
    for place, begin, end in _steps_of(table):
        shard = _shard_of(reader, place)
        if shard is not None and (kept is None or place in kept):
            rows = range(begin, end, row_stride)
            pieces += [shard.tokens(ordinals[row]) for row in rows]
            read += rows
    starts = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(piece) for piece in pieces], out=starts[1:])
    tokens = np.concatenate([np.zeros(0, reader.info.token_dtype), *pieces])
    return Rows(table=table, read=np.array(read, np.int64), tokens=tokens, starts=starts)


def read_segments(reader: IndexReader, places: Sequence[Place], rows: pa.Table, first_row: int) -> pa.Table:
    """The segments of the sequences in `rows`; `row` is the place of theirs, counted from `first_row`."""
    table = _query(reader, "segments", places, f"{_ORDER}, segment")
    of_rows = pc.index_in(table.column("address"), value_set=rows.column("address"))
    return table.append_column("row", pc.add(of_rows.cast(pa.int64()), first_row)).filter(pc.is_valid(of_rows))


def _steps_of(table: pa.Table) -> Iterator[tuple[Place, int, int]]:
    """((attempt, step), first row, end) of each step of a table in that order."""
    attempts, steps = (table.column(name).to_numpy() for name in ("attempt", "global_step"))
    cuts = np.flatnonzero((np.diff(attempts) != 0) | (np.diff(steps) != 0)) + 1
    for begin, end in itertools.pairwise([0, *cuts.tolist(), table.num_rows]):
        if end > begin:
            yield (int(attempts[begin]), int(steps[begin])), begin, end


def _shard_of(reader: IndexReader, place: Place) -> Shard | None:
    attempt, step = place
    for shard in reader.shards:
        if shard.info.attempt == attempt and shard.info.first_step <= step <= shard.info.last_step:
            return shard
    return None


def _query(reader: IndexReader, view: str, places: Sequence[Place], order: str) -> pa.Table:
    """Rows of a view for some steps: one range of steps for each attempt."""
    ranges = []
    for attempt in sorted({attempt for attempt, _ in places}):
        steps = [step for number, step in places if number == attempt]
        ranges.append(f"(attempt = {attempt} AND global_step BETWEEN {min(steps)} AND {max(steps)})")
    with reader.catalog() as connection:
        found: Any = connection.sql(f"FROM {view} WHERE {' OR '.join(ranges)} ORDER BY {order}")
        return found.to_arrow_table()
