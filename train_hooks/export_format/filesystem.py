"""The few file operations that the export needs, and what each one promises.

Everything that writes an export goes through a `FileSystem`, so that tests can put one below it that fails at a chosen
call or forgets what was never synced. Paths are absolute or relative to the working directory, never interpreted.
"""

import os
from pathlib import Path
from typing import Protocol

__all__ = ["AppendFile", "FileSystem", "OsFileSystem"]


class AppendFile(Protocol):
    """A file that only grows. Bytes are durable after `datasync` returned, not before."""

    def write(self, data: bytes) -> None: ...
    def datasync(self) -> None: ...
    def close(self) -> None: ...


class FileSystem(Protocol):
    """What a writer and a reader of exports ask of the disk. All raise OSError."""

    def create(self, path: Path, mode: int = 0o644) -> AppendFile:
        """A new file; FileExistsError where there is one."""

    def make_directory(self, path: Path) -> None:
        """A new directory; FileExistsError where there is one."""

    def rename(self, source: Path, target: Path) -> None: ...
    def sync_directory(self, path: Path) -> None:
        """Makes the names in a directory durable."""

    def truncate(self, path: Path, size_bytes: int) -> None:
        """Cuts a file and makes the cut durable."""

    def names(self, path: Path) -> list[str]: ...
    def exists(self, path: Path) -> bool: ...
    def read(self, path: Path, start: int = 0, end: int | None = None) -> bytes: ...


class _OsAppendFile:
    def __init__(self, path: Path, mode: int) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, mode)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def datasync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class OsFileSystem:
    """The operating system's files."""

    def create(self, path: Path, mode: int = 0o644) -> AppendFile:
        return _OsAppendFile(path, mode)

    def make_directory(self, path: Path) -> None:
        path.mkdir()

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def truncate(self, path: Path, size_bytes: int) -> None:
        fd = os.open(path, os.O_WRONLY)
        try:
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
        finally:
            os.close(fd)

    def names(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def exists(self, path: Path) -> bool:
        return path.exists()

    def read(self, path: Path, start: int = 0, end: int | None = None) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else end - start)
