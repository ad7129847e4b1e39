"""The export as training data: what was consumed, again, bit for bit.

The promise: for the layout that was recorded, each data-parallel rank gets the very micro-batches that its forwards got,
every tensor with its bits, dtype and name, in order. For another layout of the same global batch, each step has the same
sequences: they are taken in the order (microbatch, dp_rank, slot) and dealt out like the trainers' samplers do it,
micro-batch by micro-batch to rank 0, 1, …; hence the recorded layout, asked for by its numbers, comes out as recorded.
The order is that of the addresses and not of `sample_index`, which not every loader knows and which may repeat.

Steps are those of a lineage, by default the canonical one: what the newest attempt was trained on, across restarts and
without superseded steps. Every frame is hashed before it is parsed, and every row against its leaf (`verify="leaf"`).
One step is in memory at a time.

    dataset = ReplayDataset("run", dp_rank=dist.get_rank())
    for step in dataset.steps():
        for part in step.microbatches:
            loss = model(**part.batch).loss / len(step.microbatches)
            loss.backward()
        if step.status is StepStatus.APPLIED:     # not after an fp16 overflow, say
            optimizer.step()
        optimizer.zero_grad()

As a loader: `DataLoader(dataset, batch_size=None)` yields the micro-batches with their step, rank and status. A single
one: `ReplayMicrobatches("run")[120, 3, 0]` is that of step 120, dp_rank 3, microbatch 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from train_hooks.export_format.errors import DamageError, InputError
from train_hooks.export_format.reading.reader import AttemptReader
from train_hooks.export_format.records import Row, Segment, SequenceAddress, StepStatus
from train_hooks.replay.lineage_reader import LazyFrame, LineageReader, Verify
from train_hooks.replay.rebuilt_tensors import rebuilt_tensors

__all__ = ["ReplayDataset", "ReplayMicrobatch", "ReplayMicrobatches", "ReplayStep"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayMicrobatch:
    """What one forward is to get. `batch`: the loader's names → tensors; the other sequences have one item a slot."""

    global_step: int
    dp_rank: int
    microbatch: int
    status: StepStatus
    batch: dict[str, Tensor]
    segments: tuple[tuple[Segment, ...], ...]
    sample_index: tuple[int | None, ...]
    addresses: tuple[SequenceAddress, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayStep:
    """One committed step, with the micro-batches of one data-parallel rank; none where its data was never read."""

    attempt: int
    global_step: int
    status: StepStatus
    microbatches: tuple[ReplayMicrobatch, ...]


class ReplayDataset(IterableDataset[ReplayMicrobatch]):
    """The micro-batches of one data-parallel rank, step after step."""

    def __init__(
        self,
        run_dir: Path | str,
        *,
        dp_rank: int = 0,
        num_ranks: int | None = None,
        micro_batch: int | None = None,
        first_step: int = 1,
        last_step: int | None = None,
        attempt: int | None = None,
        verify: Verify = "leaf",
    ) -> None:
        """Without num_ranks and micro_batch: as recorded for `dp_rank`.

        With num_ranks: the part of `dp_rank` when each step is dealt to so many ranks, in micro-batches of so many
        sequences (default: one micro-batch a step). attempt: replay the lineage of this attempt instead of the canonical
        one; with last_step = N, that of its model checkpoint N. Raises InputError, RunError.
        """
        if num_ranks is None and micro_batch is not None:
            raise InputError("micro_batch: expected num_ranks with it; without both, micro-batches come as recorded")
        if not 0 <= dp_rank < (num_ranks or dp_rank + 1) or (micro_batch or 1) < 1:
            raise InputError(f"expected 0 ≤ dp_rank < num_ranks and micro_batch ≥ 1, found {dp_rank}, {micro_batch}")
        self._reader = LineageReader(Path(run_dir), attempt, first_step, last_step, verify)
        self._dp_rank, self._num_ranks, self._micro_batch = dp_rank, num_ranks, micro_batch

    def __iter__(self) -> Iterator[ReplayMicrobatch]:
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise InputError(
                f"expected at most one loader worker, so that steps stay in order, found {worker.num_workers}"
            )
        for step in self.steps():
            yield from step.microbatches

    def steps(self) -> Iterator[ReplayStep]:
        """Step after step. Raises DamageError, IncompleteError for a step with a gap, InputError for a layout that
        a step does not fill."""
        for attempt, global_step, frames in self._reader.steps():
            if self._num_ranks is None:
                microbatches = self._recorded(attempt, global_step, frames)
            else:
                microbatches = self._dealt(global_step, self._reader.rows(attempt, frames.values()))
            status = next(iter(frames.values())).ack.status or StepStatus.APPLIED
            yield ReplayStep(
                attempt=attempt.info.attempt,
                global_step=global_step,
                status=status,
                microbatches=tuple(
                    _microbatch(rows, (global_step, self._dp_rank, index), status, as_recorded=self._num_ranks is None)
                    for index, rows in enumerate(microbatches)
                ),
            )

    def _recorded(
        self, attempt: AttemptReader, global_step: int, frames: Mapping[int, LazyFrame]
    ) -> list[Sequence[Row]]:
        if self._dp_rank not in frames:
            raise InputError(
                f"step {global_step} was recorded on {len(frames)} data-parallel ranks, there is no dp_rank "
                f"{self._dp_rank}; give num_ranks= to deal its global batch out anew"
            )
        return _by_microbatch(self._reader.rows(attempt, [frames[self._dp_rank]]))

    def _dealt(self, global_step: int, rows: list[Row]) -> list[Sequence[Row]]:
        assert self._num_ranks is not None
        rows.sort(key=lambda row: (row.address.microbatch, row.address.dp_rank, row.address.slot))
        size = self._micro_batch or max(1, len(rows) // self._num_ranks)
        if len(rows) % (self._num_ranks * size):
            raise InputError(
                f"step {global_step}: expected a multiple of {self._num_ranks} ranks × {size} sequences, found "
                f"{len(rows)} sequences; choose num_ranks and micro_batch that divide the global batch"
            )
        return [rows[start : start + size] for start in range(self._dp_rank * size, len(rows), self._num_ranks * size)]


class ReplayMicrobatches(Dataset[ReplayMicrobatch]):
    """Micro-batches as recorded, by (global_step, dp_rank, microbatch), or by their number in that order."""

    def __init__(
        self,
        run_dir: Path | str,
        *,
        first_step: int = 1,
        last_step: int | None = None,
        attempt: int | None = None,
        verify: Verify = "leaf",
    ) -> None:
        """As `ReplayDataset`."""
        self._reader = LineageReader(Path(run_dir), attempt, first_step, last_step, verify)
        self._index = {step: (reader, frames) for reader, step, frames in self._reader.steps()}
        self._keys: list[tuple[int, int, int]] | None = None

    def keys(self) -> list[tuple[int, int, int]]:
        """Every (global_step, dp_rank, microbatch), in order. Reads the export once."""
        if self._keys is None:
            self._keys = [
                (step, dp_rank, microbatch)
                for step, (_, frames) in self._index.items()
                for dp_rank, frame in frames.items()
                for microbatch in sorted(set(frame.read().batch.column("microbatch").to_pylist()))
            ]
        return self._keys

    def __len__(self) -> int:
        return len(self.keys())

    def __getitem__(self, key: tuple[int, int, int] | int) -> ReplayMicrobatch:
        step, dp_rank, microbatch = self.keys()[key] if isinstance(key, int) else key
        found = self._index.get(step)
        if found is None or dp_rank not in found[1]:
            raise KeyError(key)
        frame = found[1][dp_rank]
        recorded = _by_microbatch(self._reader.rows(found[0], [frame]))
        if not 0 <= microbatch < len(recorded):
            raise KeyError(key)
        return _microbatch(recorded[microbatch], (step, dp_rank, microbatch), frame.ack.status or StepStatus.APPLIED)


def _by_microbatch(rows: Sequence[Row]) -> list[Sequence[Row]]:
    microbatches: list[list[Row]] = []
    for row in rows:
        if row.address.microbatch == len(microbatches):
            microbatches.append([])
        if row.address.microbatch != len(microbatches) - 1 or row.address.slot != len(microbatches[-1]):
            raise DamageError(f"{row.address}: rows of its step are missing or doubled; run `kiseki export verify`")
        microbatches[-1].append(row)
    return list(microbatches)


def _microbatch(
    rows: Sequence[Row], key: tuple[int, int, int], status: StepStatus, *, as_recorded: bool = True
) -> ReplayMicrobatch:
    global_step, dp_rank, microbatch = key
    return ReplayMicrobatch(
        global_step=global_step,
        dp_rank=dp_rank,
        microbatch=microbatch,
        status=status,
        batch=rebuilt_tensors(rows, as_recorded=as_recorded),
        segments=tuple(row.segments for row in rows),
        sample_index=tuple(row.sample_index for row in rows),
        addresses=tuple(row.address for row in rows),
    )
