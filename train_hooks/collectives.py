"""Work that every rank has a part in: it succeeds on all of them or raises on all of them.

A rank that raised alone would leave the others waiting in the next collective until its timeout. So a failure is sent
round first: the rank that failed raises its own error, the others one of the same kind that names the rank.
"""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from train_hooks.export_format.errors import ExportStopped, InputError

__all__ = ["distributed", "on_every_rank", "on_first_rank", "ranks_agree"]

Result = TypeVar("Result")
Failure = tuple[bool, str]


def distributed() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def on_first_rank(work: Callable[[], Result]) -> Result:
    """Do `work` on global rank 0 and give every rank its result; where it fails, every rank raises. Collective."""
    if not distributed():
        return work()
    box: list[tuple[Result | None, Failure | None]] = [(None, None)]
    if dist.get_rank() == 0:
        try:
            box[0] = (work(), None)
        except Exception as error:
            box[0] = (None, _failure(error))
            dist.broadcast_object_list(box)
            raise
    dist.broadcast_object_list(box)
    result, failure = box[0]
    if failure is not None:
        raise _error(failure, 0)
    return result  # type: ignore[return-value]  # None only where Result allows it


def on_every_rank(work: Callable[[], Result]) -> Result:
    """Do `work` on each rank and give each its own result; where one fails, every rank raises. Collective."""
    if not distributed():
        return work()
    own: Exception | None = None
    try:
        result = work()
    except Exception as error:  # noqa: BLE001  raised below, once the other ranks know
        own = error
    failures: list[Failure | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, None if own is None else _failure(own))
    if own is not None:
        raise own
    for rank, failure in enumerate(failures):
        if failure is not None:
            raise _error(failure, rank)
    return result


def ranks_agree(what: str, value: object) -> None:
    """Raises InputError on every rank where the ranks give different values. Collective."""
    if not distributed():
        return
    values: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    for rank, other in enumerate(values):
        if other != values[0]:
            raise InputError(f"{what}: expected the same on every rank, found {values[0]} on rank 0, {other} on {rank}")


def _failure(error: Exception) -> Failure:
    return isinstance(error, InputError), str(error) or type(error).__name__


def _error(failure: Failure, rank: int) -> Exception:
    from_input, message = failure
    return (InputError if from_input else ExportStopped)(f"rank {rank}: {message}")
