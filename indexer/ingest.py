"""Sealed or growing export → verified rows, by attempt and step range.

Only committed steps are read: those that every writer of the attempt has acknowledged. Every frame's bytes are checked
against their hash by the export reader before they are parsed. Rows come sorted by (global_step, dp_rank, microbatch,
slot), so that a range of steps is a contiguous range of rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.leaf import tensors_commitment
from train_hooks.export_format.reader import AttemptReader, RunReader, WriterLog
from train_hooks.export_format.records import SequenceAddress, TensorRecord

__all__ = ["StepRange", "committed_ranges", "read_rows", "tensors_commitments", "tokens_of"]

_SORT = [("global_step", "ascending"), ("dp_rank", "ascending"), ("microbatch", "ascending"), ("slot", "ascending")]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRange:
    """Steps `first_step` to `last_step`, both included, of one attempt, and how many rows they have."""

    attempt: int
    first_step: int
    last_step: int
    num_rows: int


def committed_ranges(
    attempt: AttemptReader, writers: dict[int, WriterLog], after_step: int, max_rows: int
) -> Iterator[StepRange]:
    """Committed steps after `after_step`, cut into ranges of about `max_rows` rows, at least one step each."""
    rows_of: dict[int, int] = {}
    for writer in writers.values():
        for _, ack in writer.steps():
            rows_of[ack.global_step] = rows_of.get(ack.global_step, 0) + ack.num_rows
    first, rows, last = None, 0, after_step
    for step in attempt.committed_steps(writers):
        if step <= after_step:
            continue
        if first is not None and (rows + rows_of[step] > max_rows or step != last + 1):
            yield StepRange(attempt=attempt.info.attempt, first_step=first, last_step=last, num_rows=rows)
            first, rows = None, 0
        first = step if first is None else first
        rows, last = rows + rows_of[step], step
    if first is not None:
        yield StepRange(attempt=attempt.info.attempt, first_step=first, last_step=last, num_rows=rows)


def read_rows(attempt: AttemptReader, writers: dict[int, WriterLog], steps: StepRange) -> pa.Table:
    """The rows of a step range with their dp_rank, sorted. Raises DamageError where a frame does not match its hash."""
    batches = []
    for dp_rank, writer in writers.items():
        for file, ack in writer.steps():
            if steps.first_step <= ack.global_step <= steps.last_step and ack.num_rows:
                batch = attempt.frame(file, ack).batch
                ranks = pa.array(np.full(batch.num_rows, dp_rank, np.int32))
                batches.append(batch.replace_schema_metadata(None).append_column("dp_rank", ranks))
    if not batches:
        return pa.table({})
    return pa.Table.from_batches(batches).sort_by(_SORT).combine_chunks()


def tokens_of(rows: pa.Table, dtype: npt.DTypeLike) -> tuple[npt.NDArray[np.unsignedinteger], npt.NDArray[np.int64]]:
    """All tokens of `rows`, one after the other, and the offset of each row's first token, [num_rows + 1]."""
    pieces: list[npt.NDArray[np.unsignedinteger]] = []
    lengths: list[npt.NDArray[np.int64]] = []
    little_endian = np.dtype(dtype).newbyteorder("<")
    for chunk in _chunks(rows.column("tokens")):
        offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        data = np.frombuffer(chunk.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
        pieces.append(data.view(little_endian))
        lengths.append(np.diff(offsets).astype(np.int64) // little_endian.itemsize)
    starts = np.zeros(rows.num_rows + 1, np.int64)
    np.cumsum(np.concatenate(lengths), out=starts[1:])
    return np.concatenate(pieces), starts


def tensors_commitments(rows: pa.Table, run: RunReader, attempt: int) -> pa.Array:
    """For each row what its leaf holds of labels, masks and positions: with it, tokens and segments alone can be checked.

    Nulls where the run's secret is not part of the export that we have.
    """
    try:
        secret = run.secret()
    except DamageError:
        return pa.nulls(rows.num_rows, pa.binary(32))
    columns = rows.select(["global_step", "dp_rank", "microbatch", "slot", "tensors"])
    commitments = []
    for batch in columns.to_batches(max_chunksize=4096):
        for step, dp_rank, microbatch, slot, tensors in zip(
            *(batch.column(i).to_pylist() for i in range(5)), strict=True
        ):
            address = SequenceAddress(
                run_id=run.info.run_id,
                attempt=attempt,
                global_step=step,
                dp_rank=dp_rank,
                microbatch=microbatch,
                slot=slot,
            )
            records = [TensorRecord(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in tensors]
            commitments.append(tensors_commitment(secret, str(address), records))
    return pa.array(commitments, pa.binary(32))


def _chunks(column: pa.ChunkedArray) -> Sequence[pa.BinaryArray]:
    return [chunk for chunk in column.chunks if len(chunk)]
