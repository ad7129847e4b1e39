"""Micro-batches of differing lengths: exported, replayed and matched as the forwards got them, in bounded memory."""

from collections import deque
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train_hooks.hook.matching.test_deferred import Job
from tests.train_hooks.hook.tensors.test_narrowed import consumed
from tests.train_hooks.hook.toy import LENGTH, Toy, attach, exported_ids, microbatch, same, train_step
from train_hooks.export_format.errors import ExportStopped, InputError
from train_hooks.export_format.verify.run import verify
from train_hooks.hook.tensors.batches import name_microbatch
from train_hooks.hook.tensors.host_copies import BufferPool
from train_hooks.hook.tensors.snapshots import Snapshot
from train_hooks.replay import ReplayDataset

LENGTHS = (3, 3, 16, 1, 7, 7, 16, 2, 9, 9, 5, 16)


def shorter(seed: int, length: int, *, slots: int = 2) -> dict[str, Any]:
    """The beginning of each sequence of a micro-batch, and of its labels."""
    return {name: tensor[:, :length].contiguous() for name, tensor in microbatch(seed, slots=slots).items()}


def test_across_a_crash(tmp_path: Path) -> None:
    """Two micro-batches a step, all fetched ahead; step 4 is trained on again after the crash."""
    model = Toy()
    with attach(model, tmp_path, shorter_rows=True) as hook:
        batches = list(hook.wrap(shorter(seed, length) for seed, length in enumerate(LENGTHS)))
        for step in range(1, 5):
            train_step(model, batches[2 * step - 2 : 2 * step])
            hook.commit(step)
            if step == 3:
                hook.checkpoint_barrier(step)
                token = hook.state_dict()
    fed = model.seen[:6]
    model = Toy()
    with attach(model, tmp_path, shorter_rows=True, resume=token) as hook:
        for step, at in ((4, 6), (5, 8)):
            train_step(model, list(hook.wrap(shorter(seed + 50, LENGTHS[seed]) for seed in range(at, at + 2))))
            hook.commit(step)
    fed += model.seen

    assert [tensor.shape[1] for tensor in fed] == list(LENGTHS[:10])
    assert same(exported_ids(tmp_path), fed)
    labels = [shorter(seed + 50 * (seed >= 6), LENGTHS[seed])["labels"] for seed in range(10)]
    assert same(exported_ids(tmp_path, "labels"), labels)
    assert verify(tmp_path).findings == ()
    assert verify(tmp_path).num_tokens == 2 * (sum(LENGTHS[:10]) + sum(LENGTHS[6:8]))


def test_dealt_out_anew_where_the_lengths_of_a_step_are_one(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path, shorter_rows=True) as hook:
        for step, lengths in enumerate([(3, 3), (5, 7)], 1):
            train_step(model, list(hook.wrap(shorter(10 * step + length, length) for length in lengths)))
            hook.commit(step)
    halves = [next(ReplayDataset(tmp_path, dp_rank=rank, num_ranks=2).steps()).microbatches[0] for rank in (0, 1)]
    assert torch.equal(torch.cat([half.batch["input_ids"] for half in halves]), torch.cat(model.seen[:2]))
    with pytest.raises(InputError, match="replay the recorded layout"):
        list(ReplayDataset(tmp_path, num_ranks=1))


def test_a_strict_run_refuses_what_is_shorter(tmp_path: Path) -> None:
    with (
        attach(Toy(), tmp_path) as hook,
        pytest.raises(InputError, match=r"\[num_slots, 16\] .* \[2, 5\]; .*shorter_rows=True"),
    ):
        hook.tag(shorter(1, 5))


@pytest.mark.parametrize("batch", [shorter(1, 0), {"input_ids": torch.zeros(2, LENGTH + 1, dtype=torch.int64)}])
def test_none_is_empty_or_longer(tmp_path: Path, batch: dict[str, Tensor]) -> None:
    with attach(Toy(), tmp_path, shorter_rows=True) as hook, pytest.raises(InputError, match=r"\[num_slots, 1 to 16\]"):
        hook.tag(batch)


def test_edited_tokens_of_any_of_the_lengths_are_missed(tmp_path: Path) -> None:
    """The last one fetched has another length than the one that somebody edited."""
    model = Toy()
    hook = attach(model, tmp_path, shorter_rows=True)
    first, second, _ = hook.wrap(shorter(seed, length) for seed, length in ((1, 5), (2, 5), (3, 9)))
    model(**first)
    model(second["input_ids"] * 0 + 1)
    with pytest.raises(ExportStopped, match="1 of 2 forwards got something else than fetched micro-batches"):
        hook.commit(1)
    hook.close()


def test_forwards_that_only_a_device_knows() -> None:
    job = Job()
    lengths = (4, 16, 9)
    batches = [shorter(seed, length) for seed, length in enumerate(lengths)]
    for batch in batches:
        job.consumption.fetched(Snapshot(name_microbatch(batch, "input_ids"), job.consumption.pool))
    for batch in batches:
        job.forward(batch["input_ids"])
    job.commit(1)
    assert same(job.write(), [batch["input_ids"] for batch in batches])


def pooled_bytes(pool: BufferPool) -> int:
    free: list[deque[Any]] = [*pool._free.values(), *pool._narrowed.values()]
    return sum(getattr(item, "buffer", item).nbytes for kept in free for item in kept)


def test_buffers_of_many_lengths_are_bounded() -> None:
    """512 lengths, forty micro-batches of each at once: 800 MB of buffers in all, in two kinds of 64 MiB."""
    pool, most = BufferPool(), 0
    for length in range(1, 2048, 4):
        tokens = torch.full((8, length), length)
        held = [
            Snapshot(name_microbatch({"input_ids": tokens, "mask": tokens > 0}, "input_ids"), pool) for _ in range(40)
        ]
        for snapshot in held:
            release = consumed(snapshot, pool).resolve()[0].release
            assert release is not None
            release()
        most = max(most, pooled_bytes(pool))
    assert 32 << 20 < most <= 2 * (64 << 20)


def test_few_lengths_find_their_buffers_again() -> None:
    pool = BufferPool()
    batches = [shorter(seed, length) for seed, length in enumerate((3, 8, 16))]
    used: list[set[int]] = []
    for _ in range(3):
        held = [Snapshot(name_microbatch(batch, "input_ids"), pool) for batch in batches]
        used.append({copy.address for snapshot in held for copy in snapshot.copies.values()})
        for snapshot in held:
            release = consumed(snapshot, pool).resolve()[0].release
            assert release is not None
            release()
    assert used[0] == used[1] == used[2]
