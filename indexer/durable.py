"""Durable writes: what has its final name is whole, also after a kill or a power cut.

1. A directory is built under its name with `.building` behind it. Its files are synced, then it gets its name by one rename,
   then that name is synced. What a killed process left under `.building` is removed by the next one.
2. A file is replaced by one rename of a synced file beside it. Readers find the old one or the new one, never a part.
3. Nothing here takes a lock. Who writes the same path from several processes holds one.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "BUILDING",
    "built_directory",
    "remove_unfinished_directories",
    "replace_file",
    "replace_link",
    "replaced_file",
    "sha256_of",
    "sha256_of_file",
    "sync",
    "sync_tree",
]

BUILDING = ".building"


def sha256_of(data: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes in hexadecimal digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file's bytes, or the names in a directory, durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Make everything in a directory durable, at any depth, and the directory itself. Raises OSError."""
    for path in [*directory.rglob("*"), directory]:
        sync(path)


@contextlib.contextmanager
def built_directory(final: Path) -> Iterator[Path]:
    """An empty directory to build in; it becomes `final`, synced, once the block is over, if the block did not fail.

    `final` must not exist by then, but for an empty directory. Raises OSError.
    """
    building = final.with_name(final.name + BUILDING)
    if building.exists():
        shutil.rmtree(building)
    building.mkdir(parents=True)
    yield building
    sync_tree(building)
    building.rename(final)
    sync(final.parent)


def remove_unfinished_directories(parent: Path) -> None:
    """Remove what killed processes left below `parent` under `.building`."""
    for entry in parent.iterdir() if parent.exists() else ():
        if entry.name.endswith(BUILDING):
            shutil.rmtree(entry)


@contextlib.contextmanager
def replaced_file(path: Path, mode: int = 0o644, *, unfinished: Path | None = None) -> Iterator[BinaryIO]:
    """A new file to write to; it takes the place of `path`, synced, once the block is over, if the block did not fail.

    unfinished: its path until then, in the same directory; `path` with `.tmp` behind it where none is given. Raises OSError.
    """
    unfinished = unfinished or path.with_name(path.name + ".tmp")
    unfinished.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync(path.parent)


def replace_file(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Put `data` in the place of a file, whole or not at all, and durable. Raises OSError."""
    with replaced_file(path, mode) as file:
        file.write(data)


def replace_link(path: Path, target: Path) -> None:
    """Put a symbolic link to `target` in the place of a file, durable. Raises OSError."""
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.unlink(missing_ok=True)
    unfinished.symlink_to(target)
    unfinished.rename(path)
    sync(path.parent)
