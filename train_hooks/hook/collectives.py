"""Work that every rank has a part in: it succeeds on all of them or raises on all of them.

A rank that raised alone would leave the others waiting in the next collective until its timeout. So a failure is sent
round first: the rank that failed raises its own error, the others one of the same kind that names the rank. An error of
the operating system becomes ExportStopped, with the path and what to do.
"""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

import torch.distributed as dist

from train_hooks.export_format.errors import ExportStopped, InputError

__all__ = ["distributed", "on_every_rank", "on_first_rank", "ranks_agree"]

Result = TypeVar("Result")
Failure = tuple[bool, str]

_ADVICE = {
    errno.ENOSPC: "free space there, or ",
    errno.EDQUOT: "free space there, or raise the quota, or ",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or ",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it a path that this process may write, or "),
    **dict.fromkeys((errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP), ""),
}


def distributed() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def on_first_rank(work: Callable[[], Result], path: Path | None = None) -> Result:
    """Do `work` on global rank 0 and give every rank its result; where it fails, every rank raises. Collective.

    path: what `work` writes to, for errors of the disk that do not say it.
    """
    box: list[tuple[Result | None, Failure | None]] = [(None, None)]
    own: Exception | None = None
    if not distributed() or dist.get_rank() == 0:
        try:
            box[0] = (work(), None)
        except Exception as error:  # noqa: BLE001  raised below, once the other ranks know
            own = error
            box[0] = (None, _failure(error, path))
    if distributed():
        dist.broadcast_object_list(box)
    if own is not None:
        _raise(own, path)
    result, failure = box[0]
    if failure is not None:
        raise _error(failure, 0)
    return result  # type: ignore[return-value]  # None only where Result allows it


def on_every_rank(work: Callable[[], Result], path: Path | None = None) -> Result:
    """Do `work` on each rank and give each its own result; where one fails, every rank raises. Collective.

    path: what `work` writes to, for errors of the disk that do not say it.
    """
    own: Exception | None = None
    try:
        result = work()
    except Exception as error:  # noqa: BLE001  raised below, once the other ranks know
        own = error
    failures: list[Failure | None] = [None if own is None else _failure(own, path)]
    if distributed():
        failures = failures * dist.get_world_size()
        dist.all_gather_object(failures, failures[0])
    if own is not None:
        _raise(own, path)
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


def _failure(error: Exception, path: Path | None) -> Failure:
    return isinstance(error, InputError), _of_system(error, path) or str(error) or type(error).__name__


def _error(failure: Failure, rank: int) -> Exception:
    from_input, message = failure
    return (InputError if from_input else ExportStopped)(f"rank {rank}: {message}")


def _raise(error: Exception, path: Path | None) -> NoReturn:
    """Raise what this rank's own work raised."""
    message = _of_system(error, path)
    if message is None:
        raise error
    raise ExportStopped(message) from error


def _of_system(error: Exception, path: Path | None) -> str | None:
    """An error of the operating system, such as a full disk, in words; None for any other."""
    if not isinstance(error, OSError) or error.errno is None:
        return None
    name = errno.errorcode.get(error.errno, str(error.errno))
    where = error.filename or path
    at = f"{os.fsdecode(where)}: " if isinstance(where, str | bytes | os.PathLike) else ""
    advice = _ADVICE.get(error.errno, "repair the disk, or ")
    return f"{at}{error.strerror or os.strerror(error.errno)} ({name}); {advice}give the training another run directory"
