"""The few file operations that the export needs, and what each one promises.

Everything that writes an export goes through a `FileSystem`, so that tests can put one below it that fails at a chosen
call or forgets what was never synced. Paths are absolute or relative to the working directory, never interpreted.
A file that is being written is locked (`flock`) by its process, so that a repair can tell a crash from a slow writer.
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Protocol

__all__ = ["AppendFile", "FileLock", "FileSystem", "OsFileSystem"]


class AppendFile(Protocol):
    """A file that only grows. Bytes are durable after `datasync` returned, not before."""

    def write(self, data: bytes) -> None: ...
    def datasync(self) -> None: ...
    def close(self) -> None: ...


class FileLock(Protocol):
    """A lock that is held until it is closed, or its process ends."""

    def close(self) -> None: ...


class FileSystem(Protocol):
    """What a writer and a reader of exports ask of the disk. All raise OSError."""

    def create(self, path: Path, mode: int = 0o644) -> AppendFile:
        """A new file, locked until it is closed; FileExistsError where there is one."""

    def make_directory(self, path: Path) -> None:
        """A new directory; FileExistsError where there is one."""

    def rename(self, source: Path, target: Path) -> None:
        """Atomic. A file replaces a file; a directory replaces an empty directory alone."""

    def remove(self, path: Path) -> None:
        """Takes a file's name away."""

    def sync_directory(self, path: Path) -> None:
        """Makes the names in a directory durable."""

    def truncate(self, path: Path, size_bytes: int) -> None:
        """Cuts a file and makes the cut durable."""

    def lock(self, path: Path) -> FileLock | None:
        """The lock of a file; None where a process holds it. OSError where the file system has no locks."""

    def names(self, path: Path) -> list[str]: ...
    def exists(self, path: Path) -> bool: ...
    def size(self, path: Path) -> int: ...
    def read(self, path: Path, start: int = 0, end: int | None = None) -> bytes: ...


class _OsAppendFile:
    def __init__(self, path: Path, mode: int) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, mode)
        with contextlib.suppress(OSError):  # some shared file systems have no locks; `repair` then asks its operator
            _lock_soon(self._fd)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def datasync(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _lock_soon(fd: int) -> None:
    """Lock a new file. Whoever looks whether it is locked may hold its lock, for a moment."""
    for _ in range(100):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return


class _OsFileLock:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class OsFileSystem:
    """The operating system's files."""

    def create(self, path: Path, mode: int = 0o644) -> AppendFile:
        return _OsAppendFile(path, mode)

    def make_directory(self, path: Path) -> None:
        path.mkdir()

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def remove(self, path: Path) -> None:
        path.unlink()

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

    def lock(self, path: Path) -> FileLock | None:
        fd = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        return _OsFileLock(fd)

    def names(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def exists(self, path: Path) -> bool:
        return path.exists()

    def size(self, path: Path) -> int:
        return path.stat().st_size

    def read(self, path: Path, start: int = 0, end: int | None = None) -> bytes:
        with path.open("rb", buffering=0) as file:
            if start:
                file.seek(start)
            if end is None:
                return file.readall()
            return _read_exactly(file.fileno(), end - start)


def _read_exactly(fd: int, size_bytes: int) -> bytes:
    data = os.read(fd, size_bytes)
    if len(data) == size_bytes or not data:
        return data
    parts = [data]
    while data and (size_bytes := size_bytes - len(data)):
        data = os.read(fd, size_bytes)
        parts.append(data)
    return b"".join(parts)
