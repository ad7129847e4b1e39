"""Repair of what a crash left behind: cut torn tails, seal open files. Nothing that was acknowledged is ever cut.

1. A file is touched only when its writer is dead. A live writer holds the lock of its newest file, and takes the next
   one's before it lets go. So the locks of all open files of a writer are taken first; if one is held, or the open
   files are others afterwards, the writer is left alone. Locks reach as far as the host, so an attempt that ran on
   another host is left alone too, unless the operator says that it is dead (`assume_dead`). A held lock is never
   overruled.
2. Data are cut after the last acknowledged byte, records after the last one that the chain believes. A file of which
   nothing is acknowledged is left as it is: readers ignore it.
3. Each frame is hashed before its file is sealed; damaged files are left for `verify` to name.
4. What is sealed is written anew, synced, and renamed over the old file first: after a failed sync the system may show
   bytes that never reached the disk, and a second sync of the same file would not tell.
5. Run again, it does nothing; killed anywhere, it goes on.
"""

import contextlib
import hashlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.filesystem import FileLock, FileSystem, OsFileSystem
from train_hooks.export_format.paths import IN_PROGRESS, REPAIRED
from train_hooks.export_format.reading.chain import SegmentFile, WriterLog
from train_hooks.export_format.reading.reader import AttemptReader, RunReader
from train_hooks.export_format.seals import Seal, SealedFile, new_seal, read_seal, summary_of, write_seal

__all__ = ["RepairAction", "ran_here", "repair", "writer_locks"]

_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class RepairAction:
    """One thing that a repair did, or why it did not. `kind`: cut, sealed, or left."""

    kind: str
    path: str
    message: str


def repair(
    run_dir: Path | str, *, seal: bool = True, assume_dead: bool = False, file_system: FileSystem | None = None
) -> list[RepairAction]:
    """Mend the open files of all attempts whose writers are dead. Raises RunError, DamageError of `run.json`, OSError."""
    run = RunReader(run_dir, file_system or OsFileSystem())
    actions: list[RepairAction] = []
    for attempt in run.attempts():
        for log in attempt.writer_logs().values():
            if any(not file.sealed for file in log.files):
                actions += _repair_writer(attempt, log, seal=seal, assume_dead=assume_dead)
    return actions


def ran_here(attempt: AttemptReader) -> bool:
    """Whether an attempt was claimed on this host, so that locks say whether its writers live."""
    return attempt.info.host.rpartition(":")[0] == socket.gethostname()


@contextlib.contextmanager
def writer_locks(attempt: AttemptReader, log: WriterLog) -> Iterator[bool]:
    """Hold the locks of a writer's open files. Gives False where its process holds one, or has others open meanwhile."""
    held: list[FileLock] = []
    try:
        yield _lock_all(attempt, log, held)
    finally:
        for lock in held:
            lock.close()


def _lock_all(attempt: AttemptReader, log: WriterLog, held: list[FileLock]) -> bool:
    expected = {file.name for file in log.files if not file.sealed}
    for file in log.files:
        if file.sealed or not attempt.run.file_system.exists(file.data_path):
            continue
        try:
            lock = attempt.run.file_system.lock(file.data_path)
        except FileNotFoundError:
            return False
        if lock is None:
            return False
        held.append(lock)
    again = attempt.writer_logs(log.dp_rank).get(log.dp_rank)
    return again is not None and {file.name for file in again.files if not file.sealed} == expected


def _repair_writer(attempt: AttemptReader, log: WriterLog, *, seal: bool, assume_dead: bool) -> list[RepairAction]:
    if not (assume_dead or ran_here(attempt)):
        message = f"attempt {attempt.info.attempt} ran on {attempt.info.host}; say so if it is dead, or repair it there"
        return [_action("left", attempt, attempt.directory, message)]
    with writer_locks(attempt, log) as free:
        if not free:
            return [_action("left", attempt, attempt.directory, f"the writer of dp_rank {log.dp_rank} is running")]
        attempt.run.file_system.sync_directory(attempt.directory)
        log = attempt.writer_logs(log.dp_rank)[
            log.dp_rank
        ]  # again: the writer may have ended between the look and the locks
        return _repair_files(attempt, log, seal=seal)


def _repair_files(attempt: AttemptReader, log: WriterLog, *, seal: bool) -> list[RepairAction]:
    actions: list[RepairAction] = []
    previous: str | None = None
    for number, file in enumerate(log.files):
        try:
            if file.name.number != number or file.damage is not None:
                raise DamageError(file.damage or f"file {number} is missing")
            if file.sealed:
                path = attempt.directory / file.name.seal
                existing = read_seal(path, attempt.run.file_system.read(path))
                previous = previous if existing.reason == "repaired" else existing.sha256
                continue
            if not len(file.acks):
                continue
            digest = _checked_sha256(attempt, file)
        except DamageError as error:
            message = f"{error}; `kiseki export verify` names what to restore"
            return [*actions, _action("left", attempt, file.data_path, message)]
        actions += _cut(attempt, file)
        if seal:
            made = _seal(attempt, log, file, digest, previous)
            previous = previous if made.reason == "repaired" else made.sha256
            actions.append(_action("sealed", attempt, attempt.directory / file.name.seal, "the open file was sealed"))
    return actions


def _checked_sha256(attempt: AttemptReader, file: SegmentFile) -> str:
    """SHA-256 of the acknowledged bytes, each frame checked. Raises DamageError."""
    file_system = attempt.run.file_system
    final = [attempt.directory / name for name in (file.name.data, file.name.acks)]
    seals = [attempt.directory / name for name in (file.name.seal, file.name.seal + IN_PROGRESS)]
    if any(map(file_system.exists, final)) and not any(map(file_system.exists, seals)):
        raise DamageError("its seal is missing")
    digest = hashlib.sha256()
    for ack in file.acks:
        frame = file_system.read(file.data_path, ack.start, ack.end) if file_system.exists(file.data_path) else b""
        if len(frame) != ack.end - ack.start or hashlib.sha256(frame).digest() != ack.frame_sha256:
            raise DamageError(f"bytes {ack.start}–{ack.end} do not match their hash")
        digest.update(frame)
    return digest.hexdigest()


def _cut(attempt: AttemptReader, file: SegmentFile) -> list[RepairAction]:
    actions = []
    for path, believed in (
        (file.acks_path, file.believed_acks_bytes),
        (file.data_path, file.believed_size_bytes),
    ):
        size = attempt.run.file_system.size(path)
        if size > believed:
            attempt.run.file_system.truncate(path, believed)
            actions.append(_action("cut", attempt, path, f"{size - believed} bytes that were never acknowledged"))
    return actions


def _seal(attempt: AttemptReader, log: WriterLog, file: SegmentFile, digest: str, previous: str | None) -> Seal:
    """Seal a file; a seal that its writer began goes first, with the names that it had given already."""
    file_system, directory = attempt.run.file_system, attempt.directory
    for part in (file.name.data, file.name.acks):
        if file_system.exists(directory / part):
            file_system.rename(directory / part, directory / (part + IN_PROGRESS))
    file_system.sync_directory(directory)
    begun = directory / (file.name.seal + IN_PROGRESS)
    if file_system.exists(begun):
        file_system.remove(begun)
    for part in (file.name.data, file.name.acks):
        _write_anew(file_system, directory / (part + IN_PROGRESS))
    seal = _new_seal(attempt, log, file, digest, previous)
    write_seal(file_system, directory, seal)
    return seal


def _write_anew(file_system: FileSystem, path: Path) -> None:
    copy = path.with_name(path.name.removesuffix(IN_PROGRESS) + REPAIRED + IN_PROGRESS)
    if file_system.exists(copy):
        file_system.remove(copy)
    size = file_system.size(path)
    file = file_system.create(copy)
    try:
        for start in range(0, size, _BLOCK_BYTES):
            file.write(file_system.read(path, start, min(size, start + _BLOCK_BYTES)))
        file.datasync()
    finally:
        file.close()
    file_system.rename(copy, path)


def _new_seal(attempt: AttemptReader, log: WriterLog, file: SegmentFile, digest: str, previous: str | None) -> Seal:
    acks = file.acks.encode()
    last = file.name.number == log.files[-1].name.number
    earlier = [other for other in log.files if other.name.number <= file.name.number]
    return new_seal(
        attempt.info,
        file.name,
        SealedFile(name=file.name.data, size_bytes=file.believed_size_bytes, sha256=digest),
        SealedFile(name=file.name.acks, size_bytes=len(acks), sha256=hashlib.sha256(acks).hexdigest()),
        summary_of(file.acks, attempt.run.info),
        file.acks[-1],
        last_committed_step=WriterLog(dp_rank=log.dp_rank, files=tuple(earlier)).last_step,
        last=last,
        reason=_reason(file, last=last),
        previous_seal_sha256=previous,
    )


def _reason(file: SegmentFile, *, last: bool) -> str:
    """What the writer would have said, where it ended the file and so may have named the seal in a later one."""
    if file.ended is None:
        return "repaired"
    if last:
        return "closed" if file.ended.global_step == 1 else "repaired"
    return "rolled"


def _action(kind: str, attempt: AttemptReader, path: Path, message: str) -> RepairAction:
    run_dir = attempt.run.paths.run_dir
    return RepairAction(kind=kind, path=str(path.relative_to(run_dir)), message=message)
