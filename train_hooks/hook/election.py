"""Which process exports, agreed on by all of them."""

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import nn

from train_hooks.hook.collectives import distributed, on_every_rank
from train_hooks.hook.writer_rank import DATA_AXES, WriterRank, check_election, mesh_coordinates, writer_rank

__all__ = ["elect", "mesh_of"]


def mesh_of(model: nn.Module) -> Any:
    """The mesh of the model's parameters, where it has an axis whose ranks share data, or whose name does not tell.

    A mesh without names, or whose axes all have data of their own, is no reason to look further: each rank writes.
    """
    for parameter in model.parameters():
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is not None and any(name not in DATA_AXES for name in mesh.mesh_dim_names or ()):
            return mesh
    return None


def elect(mesh: Any, data_axes: Sequence[str] | None) -> WriterRank:
    """Collective: this process's place, once all places are found to fit together."""
    if mesh is not None:
        rank = on_every_rank(lambda: writer_rank(mesh_coordinates(mesh), data_axes))
    else:
        rank = writer_rank({"dp": (dist.get_rank(), dist.get_world_size()) if distributed() else (0, 1)})
    ranks = [rank]
    if distributed():
        ranks = [rank] * dist.get_world_size()
        dist.all_gather_object(ranks, rank)
    check_election(ranks)
    return rank
