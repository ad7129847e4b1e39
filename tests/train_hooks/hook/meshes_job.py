"""Four ranks elect their writers and train: HSDP 2 × 2, then tensor parallelism in pairs, with and without a mesh given.

Each rank keeps RUN/<name>-rank<n>.pt: (its dp_rank by the mesh, step, input_ids).
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
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.train_hooks.hook.toy import Toy, attach, microbatch
from train_hooks.export_format.errors import ExportStopped, InputError
from train_hooks.hook.collectives import on_every_rank, on_first_rank

STEPS = 2


class Pair(nn.Module):
    """Two layers that tensor parallelism splits."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


def refused(message: str, model: nn.Module, run: Path, **options: Any) -> None:
    """Every rank is told the same."""
    try:
        attach(model, run, **options)
    except InputError as error:
        if message in str(error):
            return
        raise
    raise AssertionError(f"expected: {message}")


def fails_together(rank: int) -> None:
    """One rank's failure is everybody's, and nobody is left waiting."""

    def work() -> int:
        if rank in failing:
            raise OSError("disk full")
        return rank

    failing: set[int] = set()
    expect(on_every_rank(work) == rank)
    expect(on_first_rank(work) == 0)
    failing = {2}
    raised(work, rank, on_every_rank, at=2)
    failing = {0}
    raised(work, rank, on_first_rank, at=0)


def raised(work: Callable[[], int], rank: int, together: Callable[[Callable[[], int]], int], *, at: int) -> None:
    """The rank that failed has its own error, the others one that names it."""
    try:
        together(work)
    except OSError:
        expect(rank == at)
    except ExportStopped as error:
        expect(rank != at and str(error) == f"rank {at}: disk full")
    else:
        expect(False)


def expect(holds: bool) -> None:
    """An assert that is not optimised away, nor rewritten."""
    if not holds:
        raise AssertionError


def train(name: str, run: Path, model: Toy, dp_rank: int, **options: Any) -> None:
    """Data decided by the data-parallel rank, as a trainer's sampler does it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = attach(model, run / name, **options)
    log = []
    for step, batch in enumerate(hook.wrap([microbatch(10 * step + dp_rank) for step in range(STEPS)]), 1):
        model(**batch).backward()
        log.append((dp_rank, step, batch["input_ids"]))
        optimizer.step()
        optimizer.zero_grad()
        hook.commit(step)
    hook.checkpoint_barrier(STEPS)
    hook.close()
    torch.save(log, run / f"{name}-rank{dist.get_rank()}.pt")


def tensor_parallel(mesh: DeviceMesh) -> Toy:
    """Toy whose inner layer is split over `tp`, and all of it over `dp`."""
    model = Toy()
    model.inner = Pair()  # type: ignore[assignment]
    plan = {"inner.up": ColwiseParallel(), "inner.down": RowwiseParallel()}
    parallelize_module(model, mesh["tp"], plan)
    fully_shard(model, mesh=mesh["dp"])
    return model


def main() -> None:
    """Entry point of a rank."""
    run = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(1)

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp_replicate", "dp_shard"))
    model = Toy()
    fully_shard(model, mesh=mesh)
    train("hsdp", run, model, rank, mesh=mesh)

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = tensor_parallel(mesh)
    train("tp", run, model, mesh.get_local_rank("dp"), mesh=mesh)
    train("tp-found", run, model, mesh.get_local_rank("dp"))

    refused("both writers of dp_rank 0", model, run / "refused", mesh=mesh["dp"])
    refused("mesh axis 'x'", model, run / "refused", mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("x", "tp")))
    refused("without; name its axes", model, run / "refused", mesh=init_device_mesh("cpu", (4,)))
    refused("expected the same on every rank", model, run / "refused", mesh=mesh, run_id=f"run-{rank}")
    fails_together(rank)
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads of the last collective may abort a process whose interpreter is being torn down


if __name__ == "__main__":
    main()
