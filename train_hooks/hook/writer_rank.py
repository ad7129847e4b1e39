"""Which process exports: mesh coordinates → data-parallel rank, and whether this process is its writer.

Ranks that differ only along a tensor, context, sequence or pipeline axis are fed the same sequences. Of these the one
whose every such coordinate is 0 writes. Every other axis has data of its own, HSDP's two among them. Expert axes are
used both ways by trainers, so they must be named. The functions are pure, but for `mesh_coordinates`, which reads a torch
DeviceMesh without importing torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from train_hooks.export_format.errors import InputError

__all__ = ["WriterRank", "check_election", "mesh_coordinates", "writer_rank"]

DATA_AXES = ("dp", "ddp", "fsdp", "hsdp", "data", "dp_replicate", "dp_shard", "replicate", "shard", "batch")
MODEL_AXES = ("tp", "cp", "sp", "pp", "tensor", "context", "sequence", "pipeline", "model")


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterRank:
    """This process's place among the writers."""

    dp_rank: int
    num_writers: int
    is_writer: bool


def writer_rank(axes: Mapping[str, tuple[int, int]], data_axes: Sequence[str] | None = None) -> WriterRank:
    """From axis name → (coordinate, size), outermost axis first.

    data_axes: names of the axes along which ranks have data of their own, all others share it; by default the names
    decide. Raises InputError for an axis whose role is unknown.
    """
    if data_axes is not None and (unknown := [name for name in data_axes if name not in axes]):
        raise InputError(f"data_axes: expected axes of the mesh ({', '.join(axes)}), found {', '.join(unknown)}")
    dp_rank, num_writers, is_writer = 0, 1, True
    for name, (coordinate, size) in axes.items():
        if _has_own_data(name, data_axes):
            dp_rank = dp_rank * size + coordinate
            num_writers *= size
        else:
            is_writer = is_writer and coordinate == 0
    return WriterRank(dp_rank=dp_rank, num_writers=num_writers, is_writer=is_writer)


def _has_own_data(name: str, data_axes: Sequence[str] | None) -> bool:
    if data_axes is not None:
        return name in data_axes
    if name in DATA_AXES or name in MODEL_AXES:
        return name in DATA_AXES
    raise InputError(
        f"mesh axis {name!r}: expected one of {', '.join(DATA_AXES)} (each rank has data of its own) or "
        f"{', '.join(MODEL_AXES)} (ranks share it); say which have their own: attach(…, data_axes=[…])"
    )


def mesh_coordinates(mesh: Any) -> dict[str, tuple[int, int]]:
    """Axis name → (coordinate, size) of this process in a DeviceMesh. Raises InputError where it has no names or place."""
    names = mesh.mesh_dim_names
    if names is None:
        raise InputError("mesh: expected a DeviceMesh with mesh_dim_names, found one without; name its axes")
    coordinates = mesh.get_coordinate()
    if coordinates is None:
        raise InputError("mesh: expected this process in the mesh, found it outside; give a mesh of all processes")
    return {name: (coordinates[axis], mesh.size(axis)) for axis, name in enumerate(names)}


def check_election(ranks: Sequence[WriterRank]) -> None:
    """All processes' places, by global rank. Raises InputError unless each dp_rank has exactly one writer."""
    writers: dict[int, int] = {}
    for global_rank, rank in enumerate(ranks):
        if rank.num_writers != ranks[0].num_writers:
            raise InputError(
                f"mesh: expected as many data-parallel ranks everywhere, found {ranks[0].num_writers} on rank 0 and "
                f"{rank.num_writers} on rank {global_rank}"
            )
        if not rank.is_writer:
            continue
        if rank.dp_rank in writers:
            raise InputError(
                f"mesh: global ranks {writers[rank.dp_rank]} and {global_rank} are both writers of dp_rank "
                f"{rank.dp_rank}; give the mesh of all axes, not a part of it"
            )
        writers[rank.dp_rank] = global_rank
    missing = sorted(set(range(ranks[0].num_writers)) - writers.keys()) if ranks else []
    if missing:
        raise InputError(f"mesh: dp_rank {missing[0]} has no writer; give a mesh that covers every process")
