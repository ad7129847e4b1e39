"""What an explanation reads: rows of the catalog, and tokens from the shards, of a step and of the window before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from indexer.index_reader import IndexReader
from indexer.steps import Step, read_steps
from train_hooks.export_format.errors import QueryError
from train_hooks.export_format.lineage import lineage

__all__ = ["MAX_TOKENS", "Rows", "Subject", "read_rows", "read_segments", "subject_of"]

MAX_TOKENS = 2_000_000
Place = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
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
        """A column of numbers, f64, NaN for null."""
        return np.asarray(self.table.column(name).cast(pa.float64()).to_numpy())


def subject_of(reader: IndexReader, global_step: int, window: int, attempt: int | None) -> Subject:
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
    return Subject(step=step, window=tuple(sorted(places, key=lambda place: place[::-1])))


def read_rows(reader: IndexReader, places: Sequence[Place]) -> Rows:
    """The sequences of some steps; tokens of as many, evenly taken, as have MAX_TOKENS in all."""
    table = _query(reader, "sequences", places, "global_step, attempt, dp_rank, microbatch, slot")
    total = int(pa.compute.sum(table.column("num_tokens")).as_py() or 0)
    stride = max(1, -(-total // MAX_TOKENS))
    read = np.arange(0, table.num_rows, stride)
    pieces: list[npt.NDArray[np.unsignedinteger]] = []
    kept: list[int] = []
    ordinals = _ordinals(reader, table)
    for row in read.tolist():
        if ordinals[row] is not None:
            shard, ordinal = ordinals[row]
            pieces.append(reader.shards[shard].tokens(ordinal))
            kept.append(row)
    starts = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(piece) for piece in pieces], out=starts[1:])
    dtype = np.dtype(reader.info.token_dtype)
    tokens = np.concatenate(pieces) if pieces else np.zeros(0, dtype)
    return Rows(table=table, read=np.array(kept, np.int64), tokens=tokens, starts=starts)


def read_segments(reader: IndexReader, places: Sequence[Place], rows: pa.Table, first_row: int) -> pa.Table:
    """The segments of some steps; `row` is the place of their sequence in `rows`, counted from `first_row`."""
    table = _query(reader, "segments", places, "global_step, attempt, dp_rank, microbatch, slot, segment")
    of_rows = pa.compute.index_in(table.column("address"), value_set=rows.column("address"))
    return table.append_column("row", pa.compute.add(of_rows.cast(pa.int64()), first_row))


def _ordinals(reader: IndexReader, table: pa.Table) -> list[tuple[int, int] | None]:
    """(shard, ordinal) of each row; rows of a step stand in a shard as they stand in the table."""
    attempts, steps = (table.column(name).to_numpy() for name in ("attempt", "global_step"))
    found: list[tuple[int, int] | None] = [None] * table.num_rows
    begin = 0
    while begin < table.num_rows:
        place = (int(attempts[begin]), int(steps[begin]))
        end = begin
        while end < table.num_rows and (int(attempts[end]), int(steps[end])) == place:
            end += 1
        for number, shard in enumerate(reader.shards):
            info = shard.info
            if info.attempt == place[0] and info.first_step <= place[1] <= info.last_step:
                first = int(np.searchsorted(shard.steps, place[1]))
                found[begin:end] = [(number, first + row) for row in range(end - begin)]
        begin = end
    return found


def _query(reader: IndexReader, view: str, places: Sequence[Place], order: str) -> pa.Table:
    """Rows of a view for some steps: one range of steps for each attempt."""
    ranges = []
    for attempt in sorted({attempt for attempt, _ in places}):
        steps = [step for number, step in places if number == attempt]
        ranges.append(f"(attempt = {attempt} AND global_step BETWEEN {min(steps)} AND {max(steps)})")
    with reader.catalog() as connection:
        found: Any = connection.sql(f"FROM {view} WHERE {' OR '.join(ranges)} ORDER BY {order}")
        return found.to_arrow_table()
