"""Four ranks elect their writers and train: HSDP 2 × 2, then tensor parallelism in pairs, with and without a mesh given.

Each rank keeps RUN/<name>-rank<n>.pt: (its dp_rank by the mesh, step, input_ids).
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from tests.train_hooks.torch_fsdp.toy import Toy, attach, microbatch
from train_hooks.export_format.errors import InputError

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
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
