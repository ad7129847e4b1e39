"""A directory to make something in, which is then renamed to where it belongs: whole, or not there.

It is locked by the process that makes it. One that nobody locks is what a killed process left, and is cleared.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from train_hooks.export_format.errors import InputError

__all__ = ["unfinished_directory"]


@contextlib.contextmanager
def unfinished_directory(path: Path) -> Iterator[Path]:
    """An empty directory at `path`, gone when the block is over, however it ends; so are directories above it that it needed.

    Raises InputError where another process makes something there.
    """
    above = _make(path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(fd, path)
        for name in os.listdir(path):
            shutil.rmtree(path / name)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
            for directory in above:
                with contextlib.suppress(OSError):  # what was made belongs there
                    directory.rmdir()
    finally:
        os.close(fd)


def _make(path: Path) -> list[Path]:
    """The directories above that had to be made, innermost first."""
    missing = [directory for directory in path.parents if not directory.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.fstat(fd).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):  # it is made there, or was just now
        mine = False
    except OSError:  # some shared file systems have no locks
        return
    if not mine:
        raise InputError(f"{path}: another process is making this; wait for its end")
