"""Tokens that exist on a device alone: the same rules, applied on the writer thread.

There is no device here; forwards are sent the way of a device's, with copies that are there at once.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train_hooks.hook.toy import microbatch
from train_hooks.export_format.errors import ExportStopped
from train_hooks.hook.export.staging import DeferredMicrobatch
from train_hooks.hook.matching.consumption import Consumption
from train_hooks.hook.tensors.batches import name_microbatch
from train_hooks.hook.tensors.snapshots import Snapshot


class Job:
    """A trainer whose forwards get device tensors."""

    def __init__(self) -> None:
        self.consumption = Consumption()
        self.staged: list[DeferredMicrobatch] = []

    def fetch(self, seed: int) -> dict[str, Any]:
        batch = microbatch(seed)
        self.consumption.fetched(Snapshot(name_microbatch(batch, "input_ids"), self.consumption.pool))
        return batch

    def forward(self, *tensors: Tensor) -> None:
        self.consumption._step.num_forwards += 1
        self.staged.extend(self.consumption._defer([(None, tensor) for tensor in tensors], training=True))

    def commit(self, step: int, *, trained: bool = True) -> None:
        rest = self.consumption.end_step(step, trained=trained)
        assert rest is not None
        self.staged.append(rest)

    def write(self) -> list[Tensor]:
        """What the writer thread makes of it."""
        resolved = [made for staged in self.staged for made in staged.resolve()]
        found = [torch.from_numpy(made.tokens.copy()) for made in resolved]
        for made in resolved:
            assert made.release is not None
            made.release()
        self.staged = []
        return found


def _ids(*seeds: int) -> list[Tensor]:
    return [microbatch(seed)["input_ids"] for seed in seeds]


def _equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_found_among_all_integers_of_the_forward() -> None:
    job = Job()
    for seed in (1, 2):
        batch = job.fetch(seed)
        job.forward(batch["labels"], batch["input_ids"])
    job.commit(1)
    assert _equal(job.write(), _ids(1, 2))


def test_skipped_repeated_and_out_of_order() -> None:
    job = Job()
    batches = {seed: job.fetch(seed)["input_ids"] for seed in range(6)}
    for seed in (2, 1, 2):
        job.forward(batches[seed])
    job.commit(1)
    job.forward(batches[4])
    job.commit(2)
    assert _equal(job.write(), _ids(2, 1, 4))
    assert job.consumption.num_pending == 3  # 0 and 3 were left out, and like 5 may still come


def test_equal_micro_batches_and_a_repeated_forward() -> None:
    job = Job()
    batches = [job.fetch(1)["input_ids"] for _ in range(3)]
    for batch in (batches[0], batches[0], batches[1]):
        job.forward(batch)
    job.commit(1)
    job.forward(batches[2])
    job.commit(2)
    assert _equal(job.write(), _ids(1, 1, 1))


def test_edited_tokens_stop_the_export() -> None:
    job = Job()
    job.forward(job.fetch(1)["input_ids"])
    job.forward(job.fetch(2)["input_ids"] + 1)
    job.commit(1)
    with pytest.raises(ExportStopped, match="did not yield"):
        job.write()


def test_a_step_of_dry_runs_alone_stops_the_export() -> None:
    job = Job()
    job.forward(torch.zeros_like(job.fetch(1)["input_ids"]))
    job.commit(1)
    with pytest.raises(ExportStopped, match="step 1: 1 of 1 forwards got something else than fetched micro-batches"):
        job.write()


def test_buffers_go_round() -> None:
    job = Job()
    buffers: set[int] = set()
    for step in range(1, 9):
        batch = job.fetch(step)
        (pending,) = job.consumption._pending.by_number.values()
        buffers.update(copy.buffer.data_ptr() for copy in pending.copies.values())
        job.forward(batch["input_ids"])
        job.commit(step)
        assert _equal(job.write(), _ids(step))
    assert len(buffers) <= 3
