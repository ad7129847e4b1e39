"""Barrier records: the file that says that every row of steps up to N was durable on every writer rank.

Rank 0 writes it when all writers have acknowledged step N, and it is durable before `checkpoint_barrier` returns on
any rank. What it covers is final: no later segment file of the attempt holds these steps again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.filesystem import FileSystem
from train_hooks.export_format.json_files import decode_document, encode_document, info_sha256, write_once
from train_hooks.export_format.paths import IN_PROGRESS, ExportPaths
from train_hooks.export_format.records import AttemptInfo

__all__ = ["BarrierRecord", "barrier_steps", "read_barrier", "write_barrier"]

BARRIER_FORMAT = "kiseki-barrier-v1"


@dataclass(frozen=True, kw_only=True, slots=True)
class BarrierRecord:
    """One barrier record. attempt_sha256: of the `attempt.json` that it belongs to."""

    run_id: str
    attempt: int
    attempt_sha256: str
    global_step: int
    num_writers: int
    unix_time_s: float

    def encode(self) -> bytes:
        """The file's bytes."""
        return encode_document({"format": BARRIER_FORMAT, **{name: getattr(self, name) for name in self.__slots__}})


def write_barrier(
    file_system: FileSystem,
    paths: ExportPaths,
    attempt: AttemptInfo,
    global_step: int,
    clock: Callable[[], float] = time.time,
) -> None:
    """Make the barrier record of a step durable. Raises OSError; the same call may be made again then."""
    path = paths.barrier_json(attempt.attempt, global_step)
    if file_system.exists(path):  # maybe a call before this one failed to make its name durable
        file_system.sync_directory(path.parent)
        return
    unfinished = path.with_name(path.name + IN_PROGRESS)
    if file_system.exists(unfinished):  # a write of this very record failed
        file_system.remove(unfinished)
    record = BarrierRecord(
        run_id=attempt.run_id,
        attempt=attempt.attempt,
        attempt_sha256=info_sha256(attempt),
        global_step=global_step,
        num_writers=attempt.num_writers,
        unix_time_s=clock(),
    )
    write_once(file_system, path, record.encode())


def barrier_steps(file_system: FileSystem, directory: Path) -> list[int]:
    """The steps of which an attempt's directory has barrier records, ascending. The records are not read."""
    steps = [
        step
        for name in file_system.names(directory)
        if not name.endswith(IN_PROGRESS) and (step := ExportPaths.barrier_step(name)) is not None
    ]
    return sorted(steps)


def read_barrier(file_system: FileSystem, paths: ExportPaths, attempt: AttemptInfo, global_step: int) -> BarrierRecord:
    """The barrier record of a step. Raises DamageError where it is damaged, or of another attempt or step."""
    path = paths.barrier_json(attempt.attempt, global_step)
    document = decode_document(path, file_system.read(path))
    if document.pop("format", None) != BARRIER_FORMAT:
        raise DamageError(f'{path}: expected "format": "{BARRIER_FORMAT}"; a newer kiseki may read it')
    document.pop("sha256")
    try:
        record = BarrierRecord(**document)  # type: ignore[arg-type]
    except TypeError as error:
        raise DamageError(f"{path} has other keys than a barrier record: {error}") from error
    expected = (attempt.run_id, attempt.attempt, info_sha256(attempt), global_step, attempt.num_writers)
    found = (record.run_id, record.attempt, record.attempt_sha256, record.global_step, record.num_writers)
    if found != expected:
        raise DamageError(
            f"{path} is the barrier record of step {record.global_step} of attempt {record.attempt} of run "
            f"{record.run_id}, not of this attempt; remove it, or restore the right one from a copy of the export"
        )
    return record
