"""Which process exports: mesh coordinates → data-parallel rank, and whether this process is its writer.

Ranks that differ only along a tensor, context, sequence or pipeline axis are fed the same sequences. Of these the one
whose every such coordinate is 0 writes. Pure functions; the torch mesh is read by the caller.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from train_hooks.export_format.errors import InputError

__all__ = ["WriterRank", "writer_rank"]

DATA_AXES = ("dp", "ddp", "fsdp", "hsdp", "data", "dp_replicate", "dp_shard", "replicate", "shard", "batch")
MODEL_AXES = ("tp", "cp", "sp", "pp", "ep", "tensor", "context", "sequence", "pipeline", "expert", "model")


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterRank:
    """This process's place among the writers."""

    dp_rank: int
    num_writers: int
    is_writer: bool


def writer_rank(axes: Mapping[str, tuple[int, int]]) -> WriterRank:
    """From axis name → (coordinate, size), outermost axis first. Raises InputError for an axis whose role is unknown."""
    dp_rank, num_writers, is_writer = 0, 1, True
    for name, (coordinate, size) in axes.items():
        if name in DATA_AXES:
            dp_rank = dp_rank * size + coordinate
            num_writers *= size
        elif name in MODEL_AXES:
            is_writer = is_writer and coordinate == 0
        else:
            raise InputError(
                f"mesh axis {name!r}: expected one of {', '.join(DATA_AXES)} (each has data of its own) or "
                f"{', '.join(MODEL_AXES)} (shares it); rename the axis, or give writer= to attach"
            )
    return WriterRank(dp_rank=dp_rank, num_writers=num_writers, is_writer=is_writer)
