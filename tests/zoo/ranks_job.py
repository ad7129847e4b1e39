"""Four ranks run the loops of parallel trainings, one after the other, each with a log of its own forwards.

RUN/<name>/run is the run directory of a loop; RUN/<name>-rank<n>.pt is (dp_rank, whether the rank writes, its log).
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tests.zoo.job import Hook, Job
from tests.zoo.models import LENGTH, VOCAB, Lm, batches, next_token_loss, plain, sgd, update

STEPS, NUM_RANKS = 3, 4
Loop = Callable[[Job], Hook]


def mesh_of(*names: str) -> DeviceMesh:
    """The ranks in pairs of pairs."""
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=names)


def uneven_inputs(job: Job) -> Hook:
    """DDP's `join`: ranks with less data shadow the collectives of the others, and commit steps without data."""
    base = Lm()
    model = DistributedDataParallel(base)
    hook, optimizer = job.attach(model, like=base), sgd(model)
    num_steps, step = STEPS - dist.get_rank() % 2, 0
    with model.join():
        for step, batch in enumerate(hook.wrap(batches(num_steps, 100 * dist.get_rank())), 1):
            update(optimizer, model(batch["input_ids"], labels=batch["labels"]))
            hook.commit(step, status="applied")
    for left in range(step + 1, STEPS + 1):
        hook.commit(left, status="applied")
    return hook


def uneven_steps(job: Job) -> Hook:
    """DDP with `no_sync`, and another number of micro-batches on each rank: packed data comes out so."""
    base = Lm()
    model = DistributedDataParallel(base)
    hook, optimizer = job.attach(model, like=base), sgd(model)
    num_microbatches = 1 + dist.get_rank() % 3
    data = iter(hook.wrap(batches(STEPS * num_microbatches, 100 * dist.get_rank())))
    for step in range(1, STEPS + 1):
        with model.no_sync():
            for _ in range(num_microbatches - 1):
                model(**next(data)).backward()
        update(optimizer, model(**next(data)))
        hook.commit(step)
    return hook


def hybrid_sharding(job: Job) -> Hook:
    """HSDP: FSDP2 on a mesh of two axes, both with data of their own, gradients synchronized by the last micro-batch."""
    model = Lm()
    mesh = mesh_of("dp_replicate", "dp_shard")
    fully_shard(model.inner, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert isinstance(model, FSDPModule)
    hook, optimizer = job.attach(model, mesh=mesh), sgd(model)
    data = iter(hook.wrap(batches(2 * STEPS, 100 * dist.get_rank())))
    for step in range(1, STEPS + 1):
        for last in (False, True):
            model.set_requires_gradient_sync(last)
            model(**next(data)).backward()
        optimizer.step()
        optimizer.zero_grad()
        hook.commit(step)
        evaluate(model)
    return hook


@torch.no_grad()
def evaluate(model: nn.Module) -> None:
    """On every rank."""
    model.eval()
    model(**next(plain(1, first=9000)))
    model.train()


def tensor_parallel(job: Job) -> Hook:
    """Ranks of a tensor-parallel pair get the same data, and one of them writes."""
    mesh = mesh_of("dp", "tp")
    model = Lm()
    parallelize_module(model, mesh["tp"], {"inner": ColwiseParallel(), "head": RowwiseParallel()})
    fully_shard(model, mesh=mesh["dp"])
    hook, optimizer = job.attach(model, mesh=mesh), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(STEPS, 100 * mesh.get_local_rank("dp"))), 1):
        update(optimizer, model(batch["input_ids"], labels=batch["labels"].clone()))
        hook.commit(step)
    return hook


def pipeline(job: Job, *, consume: bool) -> Hook:
    """1F1B over two stages: the schedule cuts the rows for the first one, which is the hooked module of its rank. Its
    very first forward is torch's own, on the rows of the one after it, to learn the shapes."""
    mesh = mesh_of("dp", "pp")
    at = mesh.get_local_rank("pp")
    stages = nn.Sequential(nn.Embedding(VOCAB, 8), nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, VOCAB))
    stage = PipelineStage(stages[at], at, 2, torch.device("cpu"), group=mesh.get_group("pp"))
    schedule = Schedule1F1B(stage, n_microbatches=2, loss_fn=next_token_loss)
    hook, optimizer = job.attach(stages[at], mesh=mesh, tokens=("input",), repeats=True), sgd(stages[at])
    if consume:
        hook.listen(stages[at], counting=True)
    for step, batch in enumerate(hook.wrap(batches(STEPS, 100 * mesh.get_local_rank("dp"), slots=4)), 1):
        if consume:
            hook.consume()
        if at == 0:
            schedule.step(batch["input_ids"])
        else:
            schedule.step(target=batch["labels"], losses=[])
        optimizer.step()
        optimizer.zero_grad()
        hook.commit(step)
    return hook


def context_parallel(job: Job) -> Hook:
    """Each rank of a context-parallel pair gets half of the columns of the same rows."""
    mesh = mesh_of("dp", "cp")
    half = LENGTH // 2
    columns = slice(half * mesh.get_local_rank("cp"), half * (mesh.get_local_rank("cp") + 1))
    model = Lm()
    fully_shard(model, mesh=mesh["dp"])
    hook, optimizer = job.attach(model, mesh=mesh), sgd(model)
    for step, batch in enumerate(hook.wrap(batches(STEPS, 100 * mesh.get_local_rank("dp")), columns=columns), 1):
        update(optimizer, model(**{name: value[:, columns] for name, value in batch.items()}))
        hook.commit(step)
    return hook


LOOPS: dict[str, Loop] = {
    "uneven_inputs": uneven_inputs,
    "uneven_steps": uneven_steps,
    "hybrid_sharding": hybrid_sharding,
    "tensor_parallel": tensor_parallel,
    "pipeline": lambda job: pipeline(job, consume=False),
    "pipeline_with_consume": lambda job: pipeline(job, consume=True),
    "context_parallel": context_parallel,
}


def main() -> None:
    """Entry point of a rank."""
    directory = Path(sys.argv[1])
    dist.init_process_group("gloo")
    for name in sys.argv[2:] or LOOPS:
        torch.manual_seed(1)
        job = Job(directory / name)
        hook: Any = LOOPS[name](job)
        hook.checkpoint_barrier(STEPS)
        hook.close()
        told = hook.rank.dp_rank, hook.rank.is_writer, job.logs["run"]
        torch.save(told, directory / f"{name}-rank{dist.get_rank()}.pt")
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads of the last collective may abort a process whose interpreter is being torn down


if __name__ == "__main__":
    main()
