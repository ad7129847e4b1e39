"""Two ranks train with FSDP2, FSDP1 and DDP, one after the other; every rank keeps what its forwards got.

Each way of sharding gets a run directory RUN/<name> and a log RUN/<name>-rank<n>.pt: (step, microbatch, input_ids).
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from tests.train_hooks.hook.toy import LENGTH, SLOTS, Toy, attach, microbatch

STEPS, ACCUMULATION = 3, 2


class Shard(Dataset[dict[str, Any]]):
    """One rank's micro-batches."""

    def __init__(self, rank: int, num_ranks: int) -> None:
        self._rank, self._num_ranks = rank, num_ranks

    def __len__(self) -> int:
        return STEPS * ACCUMULATION + 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return microbatch(index * self._num_ranks + self._rank, documents=True)


def first(items: list[dict[str, Any]]) -> dict[str, Any]:
    """The loader's collate: micro-batches are whole already."""
    return items[0]


def shard(name: str, model: Toy) -> nn.Module:
    """The outermost callable."""
    if name == "fsdp2":
        fully_shard(model.inner)
        fully_shard(model)
        return model
    if name == "fsdp1":
        return FullyShardedDataParallel(
            model, sharding_strategy=ShardingStrategy.FULL_SHARD, device_id=torch.device("cpu")
        )
    return DistributedDataParallel(model)


def train(name: str, run: Path) -> None:
    """A short training with evaluation, dry runs, prefetching workers and accumulation."""
    torch.manual_seed(1)
    rank = dist.get_rank()
    base = Toy()
    log: list[tuple[int, int, Tensor]] = []
    model = shard(name, base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    hook = attach(model, run / name)
    loader = hook.wrap(
        DataLoader(Shard(rank, dist.get_world_size()), collate_fn=first, num_workers=1, prefetch_factor=2)
    )
    model(torch.zeros(SLOTS, LENGTH, dtype=torch.int64)).backward()
    optimizer.zero_grad()
    batches: Iterator[dict[str, Any]] = iter(loader)
    for step in range(1, STEPS + 1):
        model.eval()
        with torch.no_grad():
            model(**microbatch(1000 + step))
        model.train()
        for index in range(ACCUMULATION):
            batch = next(batches)
            base.seen.clear()
            model(batch["input_ids"], labels=batch["labels"]).backward()
            log.append((step, index, base.seen[0]))
        optimizer.step()
        optimizer.zero_grad()
        hook.commit(step, metrics={"loss": 1.0})
        hook.checkpoint_barrier(step)
        assert hook.acknowledged_step >= step
    del batches
    hook.close()
    torch.save(log, run / f"{name}-rank{rank}.pt")


def main() -> None:
    """Entry point of a rank."""
    dist.init_process_group("gloo")
    for name in ("fsdp2", "fsdp1", "ddp"):
        train(name, Path(sys.argv[1]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
