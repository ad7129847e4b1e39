"""Seals: the small JSON file that makes a segment file immutable and believable.

A seal names the sizes and hashes of the data and of the acknowledgement records, what they hold, the `attempt.json` that
they belong to, and the seal of the writer's file before. It is durable under its `.inprogress` name before data and
records are renamed, and renamed itself once these names are durable. So whoever sees a final name of data or records and
no seal under either name knows that the seal was lost, not that the writer died.
"""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.filesystem import FileSystem
from train_hooks.export_format.json_files import decode_document, encode_document
from train_hooks.export_format.paths import IN_PROGRESS, SegmentFileName

__all__ = ["Seal", "SealCounts", "SealedPart", "publish_seal", "read_seal", "write_seal"]

SEAL_FORMAT = "kiseki-seal-v1"


@dataclass(kw_only=True, slots=True)
class SealCounts:
    """What a seal counts while its file grows."""

    num_rows: int = 0
    num_tokens: int = 0
    num_steps: int = 0
    first_step: int | None = None
    last_step: int | None = None

    def add_step(self, global_step: int, num_rows: int, num_tokens: int) -> None:
        """Count one acknowledged step."""
        self.num_rows += num_rows
        self.num_tokens += num_tokens
        self.num_steps += 1
        self.first_step = global_step if self.first_step is None else self.first_step
        self.last_step = global_step


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedPart:
    """Name, size and hash of one file that a seal covers."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Seal:
    """One seal. `last`: no file of this writer follows. `reason`: rolled, closed, or repaired.

    Rolled and closed files end with an end record, and anybody who seals them makes the same seal; repaired ones have
    none. `previous_seal_sha256`: the newest seal before it that is not of a repaired file, since writers know no others.
    """

    run_id: str
    attempt: int
    attempt_sha256: str
    dp_rank: int
    file_number: int
    last: bool
    reason: str
    data: SealedPart
    acks: SealedPart
    num_rows: int
    num_tokens: int
    num_steps: int
    first_step: int | None
    last_step: int | None
    previous_seal_sha256: str | None

    def encode(self) -> bytes:
        """The seal file's bytes."""
        return encode_document({"format": SEAL_FORMAT, **dataclasses.asdict(self)})

    @property
    def sha256(self) -> str:
        """What the next seal of this writer names."""
        return hashlib.sha256(self.encode()).hexdigest()


def read_seal(path: Path, data: bytes) -> Seal:
    """The seal in `data`, its own hash checked first. Raises DamageError."""
    document: dict[str, Any] = decode_document(path, data)
    if document.pop("format", None) != SEAL_FORMAT:
        raise DamageError(f'{path}: expected "format": "{SEAL_FORMAT}"; a newer kiseki may read it')
    document.pop("sha256")
    try:
        data_part, acks_part = (SealedPart(**document.pop(name)) for name in ("data", "acks"))
        return Seal(**document, data=data_part, acks=acks_part)
    except (TypeError, KeyError) as error:
        raise DamageError(f"{path} has other keys than a seal: {error}; a newer kiseki may read it") from error


def write_seal(file_system: FileSystem, directory: Path, seal: Seal) -> None:
    """Makes a whole segment file immutable."""
    name = SegmentFileName(dp_rank=seal.dp_rank, number=seal.file_number)
    data = seal.encode()
    unfinished = directory / (name.seal + IN_PROGRESS)
    file = file_system.create(unfinished)
    try:
        file.write(data)
        file.datasync()
    finally:
        file.close()
    file_system.sync_directory(directory)
    publish_seal(file_system, directory, name)


def publish_seal(file_system: FileSystem, directory: Path, name: SegmentFileName) -> None:
    """Gives data, records and seal their final names, the seal last; the seal's `.inprogress` name is durable before."""
    for part in (name.data, name.acks):
        if file_system.exists(directory / (part + IN_PROGRESS)):
            file_system.rename(directory / (part + IN_PROGRESS), directory / part)
    file_system.sync_directory(directory)
    file_system.rename(directory / (name.seal + IN_PROGRESS), directory / name.seal)
    file_system.sync_directory(directory)
