"""A file system in memory that forgets at a crash what was never synced, and fails when it is told to.

- Bytes of a file are durable up to its last successful `datasync`. A crash keeps any prefix of what came after.
- After a failed `datasync` the bytes that it was for can be read until the crash and never become durable, whatever later
  syncs say: what Linux file systems do.
- Changes of names in a directory are durable after `sync_directory`. A crash applies any subset of those that came
  after it, in their order, each whole or not at all.
"""

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Killed", "MemoryFileSystem"]


class Killed(BaseException):
    """The process dies here."""


@dataclass(eq=False, slots=True)
class _File:
    data: bytearray = field(default_factory=bytearray)
    durable_size: int = 0
    lost: bool = False
    locked: bool = False

    def crashed(self, rng: random.Random) -> "_File":
        """What a crash leaves of it."""
        anywhere = self.durable_size + int(rng.random() * (len(self.data) - self.durable_size + 1))
        size = rng.choice([self.durable_size, len(self.data), anywhere])
        return _File(data=self.data[:size], durable_size=size)


@dataclass(eq=False, slots=True)
class _Directory:
    entries: "dict[str, _File | _Directory]" = field(default_factory=dict)
    durable: "dict[str, _File | _Directory]" = field(default_factory=dict)
    pending: "list[tuple[str, str, str | None, _File | _Directory]]" = field(default_factory=list)

    def crashed(self, rng: random.Random) -> "_Directory":
        """What a crash leaves of it and of all below."""
        entries = dict(self.durable)
        for kind, name, target, node in self.pending:
            if rng.random() < 0.5:
                continue
            if kind == "add" and name not in entries:
                entries[name] = node
            elif kind == "remove" and entries.get(name) is node:
                del entries[name]
            elif kind == "rename" and target is not None and entries.get(name) is node:
                entries[target] = entries.pop(name)
        kept = {name: node.crashed(rng) for name, node in sorted(entries.items())}
        return _Directory(entries=kept, durable=dict(kept))


class _Append:
    def __init__(self, owner: "MemoryFileSystem", path: Path, file: _File) -> None:
        self._owner, self._path, self._file = owner, path, file
        self._open = True

    def write(self, data: bytes) -> None:
        assert self._open
        try:
            self._owner.operation("write", self._path)
        except (OSError, Killed):
            self._file.data += data[: int(self._owner.rng.random() * (len(data) + 1))]
            raise
        self._file.data += data

    def datasync(self) -> None:
        assert self._open
        try:
            self._owner.operation("datasync", self._path)
        except OSError:
            self._file.lost = True
            raise
        if not self._file.lost:
            self._file.durable_size = len(self._file.data)

    def close(self) -> None:
        if self._open:
            self._open = self._file.locked = False


@dataclass(eq=False, slots=True)
class _Lock:
    file: _File

    def close(self) -> None:
        self.file.locked = False


class MemoryFileSystem:
    """See the module. `before` is called with the name and path of each operation that changes something; it may raise."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.before: Callable[[str, Path], None] | None = None
        self.root = _Directory()
        self._known: dict[str, dict[str, _File | _Directory]] = {}

    def operation(self, name: str, path: Path) -> None:
        """One operation that changes something; fails if it is to."""
        if self.before is not None:
            self.before(name, path)

    def crash(self) -> None:
        """The machine loses power: all that was never synced is forgotten or not."""
        self.root = self.root.crashed(self.rng)
        self._known.clear()

    def contents(self, path: Path) -> dict[Path, bytes]:
        """Every file below a directory."""
        found: dict[Path, bytes] = {}
        for name, node in sorted(self._directory(path).entries.items()):
            if isinstance(node, _Directory):
                found |= self.contents(path / name)
            else:
                found[path / name] = bytes(node.data)
        return found

    def put(self, path: Path, data: bytes | None) -> None:
        """What somebody does who has the disk: other bytes in a file, another file, or none (None)."""
        entries = self._directory(path.parent).entries
        if data is None:
            del entries[path.name]
        else:
            entries[path.name] = _File(data=bytearray(data), durable_size=len(data))

    def dump(self, path: Path, target: Path) -> None:
        """The files below a directory as real ones below another, empty directories too."""
        target.mkdir(parents=True, exist_ok=True)
        for name, node in self._directory(path).entries.items():
            if isinstance(node, _Directory):
                self.dump(path / name, target / name)
            else:
                (target / name).write_bytes(node.data)

    def create(self, path: Path, mode: int = 0o644) -> _Append:  # noqa: ARG002
        self.operation("create", path)
        directory = self._directory(path.parent)
        if path.name in directory.entries:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        file = _File(locked=True)
        directory.entries[path.name] = file
        directory.pending.append(("add", path.name, None, file))
        return _Append(self, path, file)

    def make_directory(self, path: Path) -> None:
        self.operation("make_directory", path)
        directory = self._directory(path.parent)
        if path.name in directory.entries:
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        made = _Directory()
        directory.entries[path.name] = made
        directory.pending.append(("add", path.name, None, made))

    def rename(self, source: Path, target: Path) -> None:
        self.operation("rename", source)
        assert source.parent == target.parent
        directory = self._directory(source.parent)
        node = self._node(source)
        there = directory.entries.get(target.name)
        if isinstance(there, _Directory) and there.entries:
            raise OSError(errno.ENOTEMPTY, "not empty", str(target))
        del directory.entries[source.name]
        directory.entries[target.name] = node
        if isinstance(node, _Directory):
            self._known.clear()
        directory.pending.append(("rename", source.name, target.name, node))

    def remove(self, path: Path) -> None:
        self.operation("remove", path)
        node = self._node(path)
        directory = self._directory(path.parent)
        del directory.entries[path.name]
        directory.pending.append(("remove", path.name, None, node))

    def sync_directory(self, path: Path) -> None:
        self.operation("sync_directory", path)
        directory = self._directory(path)
        directory.durable = dict(directory.entries)
        directory.pending.clear()

    def truncate(self, path: Path, size_bytes: int) -> None:
        self.operation("truncate", path)
        file = self._file(path)
        del file.data[size_bytes:]
        file.durable_size = len(file.data)

    def lock(self, path: Path) -> _Lock | None:
        file = self._file(path)
        if file.locked:
            return None
        file.locked = True
        return _Lock(file)

    def names(self, path: Path) -> list[str]:
        return sorted(self._directory(path).entries)

    def exists(self, path: Path) -> bool:
        try:
            self._node(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: Path) -> int:
        return len(self._file(path).data)

    def read(self, path: Path, start: int = 0, end: int | None = None) -> bytes:
        return bytes(self._file(path).data[start:end])

    def _node(self, path: Path) -> _File | _Directory:
        head, _, name = str(path).rpartition("/")
        found = self._entries(head).get(name) if name else self.root
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        return found

    def _entries(self, text: str) -> "dict[str, _File | _Directory]":
        known = self._known.get(text)
        if known is None:
            node = self._node(Path(text)) if text else self.root
            if not isinstance(node, _Directory):
                raise FileNotFoundError(errno.ENOENT, "no such directory", text)
            known = self._known[text] = node.entries
        return known

    def _directory(self, path: Path) -> _Directory:
        node = self._node(path)
        if not isinstance(node, _Directory):
            raise NotADirectoryError(errno.ENOTDIR, "no directory", str(path))
        return node

    def _file(self, path: Path) -> _File:
        node = self._node(path)
        if not isinstance(node, _File):
            raise IsADirectoryError(errno.EISDIR, "a directory", str(path))
        return node
