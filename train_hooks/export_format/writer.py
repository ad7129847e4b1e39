"""Writing one data-parallel rank's rows: the durability rules.

1. A segment file and its `.acks` are created exclusively and their names synced before a byte is written.
2. `append` writes the frames and syncs them, then writes their acknowledgement records and syncs those. It returns only
   then: what it returned for is acknowledged. One call is two syncs, however many steps it holds.
3. A failed write or sync is final for its file. Nothing is tried again on it: a new file continues the chain from the
   last acknowledged record and takes the frames again from memory. If that fails too, the OSError goes to the caller.
4. A full file is sealed only after the next one exists, so a missing last file cannot pass for a short run.
5. Sealing: end-of-stream frame and its record, then the seal under its `.inprogress` name, sync; then rename data,
   records and seal, sync the directory. Killed between any two of these, a reader sees the same rows.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from train_hooks.export_format.acknowledgement import ACK_SIZE, Ack, AckKind, file_identity
from train_hooks.export_format.filesystem import AppendFile, FileSystem
from train_hooks.export_format.leaf import EMPTY_ROOT, merkle_root
from train_hooks.export_format.paths import IN_PROGRESS, SegmentFileName
from train_hooks.export_format.records import AttemptInfo, Row, RunInfo, StepRecord, StepStatus
from train_hooks.export_format.schema import END_OF_STREAM, encode_frame, row_schema

__all__ = ["Frame", "RankWriter", "SealCounts", "write_seal"]

SEAL_FORMAT = "kiseki-seal-v1"
CLOSED, CONTINUES = 1, 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What one record batch of a segment file holds: a committed step's rows, or step records alone."""

    kind: AckKind
    global_step: int
    status: StepStatus | None
    rows: tuple[Row, ...]
    records: tuple[StepRecord, ...]


@dataclass(kw_only=True, slots=True)
class SealCounts:
    """What a seal counts while its file grows."""

    num_rows: int = 0
    num_tokens: int = 0
    num_steps: int = 0
    first_step: int | None = None
    last_step: int | None = None

    def add(self, frame: Frame) -> None:
        """Count one acknowledged frame."""
        if frame.kind is not AckKind.STEP:
            return
        self.num_rows += len(frame.rows)
        self.num_tokens += sum(len(row.tokens) for row in frame.rows)
        self.num_steps += 1
        self.first_step = frame.global_step if self.first_step is None else self.first_step
        self.last_step = frame.global_step


@dataclass(kw_only=True, slots=True)
class _OpenFile:
    """A segment file that grows. `acks` and `position` speak of what is acknowledged, never of what was only written."""

    name: SegmentFileName
    data: AppendFile
    acks: AppendFile
    schema: pa.Schema
    identity: bytes
    last: Ack | None = None
    data_sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    acks_sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    num_acks: int = 0
    counts: SealCounts = field(default_factory=SealCounts)

    @property
    def position(self) -> int:
        return 0 if self.last is None else self.last.end

    def close(self) -> None:
        self.data.close()
        self.acks.close()


class RankWriter:
    """The segment files of one dp_rank in one attempt, one after the other. Used by one thread at a time."""

    def __init__(
        self,
        file_system: FileSystem,
        directory: Path,
        run: RunInfo,
        attempt: AttemptInfo,
        dp_rank: int,
        *,
        roll_size_bytes: int = 1 << 30,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Creates file 0. FileExistsError where another writer of this dp_rank has; OSError where the disk refuses."""
        self._fs, self._directory, self._run, self._attempt = file_system, directory, run, attempt
        self._dp_rank, self._roll_size_bytes, self._clock = dp_rank, roll_size_bytes, clock
        self._last_hash: bytes | None = None
        self._last_seal: str | None = None
        self._number = -1
        self._file = self._create()

    def append(self, frames: Sequence[Frame]) -> None:
        """Returns once all frames are durable and acknowledged. Raises OSError when a second file failed as well."""
        if self._file.position >= self._roll_size_bytes:
            self._roll()
        try:
            self._append(self._file, frames)
        except OSError:
            self._file.close()
            self._file = self._create()
            self._append(self._file, frames)

    def close(self) -> None:
        """Seals the last file. OSError leaves it open but whole: every acknowledged row can be read."""
        file = self._file
        try:
            if file.last is None:
                self._append(file, ())
            self._write(file, [self._ack(file, file.last, END_OF_STREAM, AckKind.END, mark=CLOSED)])
            self._finish(file, "closed")
        finally:
            file.close()

    def abandon(self) -> None:
        """Gives the files back without sealing, as a crash would."""
        self._file.close()

    def _create(self) -> _OpenFile:
        self._number += 1
        name = SegmentFileName(dp_rank=self._dp_rank, number=self._number)
        schema = row_schema(
            {
                "kiseki.format_version": str(self._run.format_version),
                "kiseki.run_id": self._run.run_id,
                "kiseki.attempt": str(self._attempt.attempt),
                "kiseki.dp_rank": str(self._dp_rank),
                "kiseki.file_number": str(self._number),
                "kiseki.sequence_length": str(self._run.sequence_length),
                "kiseki.token_dtype": self._run.token_dtype,
            }
        )
        data = self._fs.create(self._directory / (name.data + IN_PROGRESS))
        acks = self._fs.create(self._directory / (name.acks + IN_PROGRESS))
        self._fs.sync_directory(self._directory)
        identity = file_identity(
            self._run.run_id, self._attempt.attempt, self._attempt.claim, self._dp_rank, self._number, self._last_hash
        )
        return _OpenFile(name=name, data=data, acks=acks, schema=schema, identity=identity)

    def _append(self, file: _OpenFile, frames: Sequence[Frame]) -> None:
        blobs = [] if file.last else [self._ack(file, None, file.schema.serialize().to_pybytes(), AckKind.SCHEMA)]
        last = blobs[-1][0] if blobs else file.last
        for frame in frames:
            data = encode_frame(file.schema, frame.rows, frame.records)
            blobs.append(self._ack(file, last, data, frame.kind, frame))
            last = blobs[-1][0]
        self._write(file, blobs)
        for frame in frames:
            file.counts.add(frame)

    def _ack(
        self, file: _OpenFile, last: Ack | None, data: bytes, kind: AckKind, frame: Frame | None = None, mark: int = 0
    ) -> tuple[Ack, bytes]:
        start = last.end if last else 0
        ack = Ack(
            kind=kind,
            number=last.number + 1 if last else 0,
            start=start,
            end=start + len(data),
            global_step=frame.global_step if frame else mark,
            num_rows=len(frame.rows) if frame else 0,
            status=frame.status if frame else None,
            frame_sha256=hashlib.sha256(data).digest(),
            root=merkle_root([row.leaf for row in frame.rows]) if frame else EMPTY_ROOT,
            previous=last.sha256 if last else file.identity,
            unix_time_us=int(self._clock() * 1e6),
        )
        return ack, data

    def _write(self, file: _OpenFile, blobs: Sequence[tuple[Ack, bytes]]) -> None:
        data = b"".join(blob for _, blob in blobs)
        records = b"".join(ack.encode() for ack, _ in blobs)
        file.data.write(data)
        file.data.datasync()
        file.acks.write(records)
        file.acks.datasync()
        file.data_sha256.update(data)
        file.acks_sha256.update(records)
        file.last, file.num_acks = blobs[-1][0], file.num_acks + len(blobs)
        self._last_hash = file.last.sha256

    def _roll(self) -> None:
        full = self._file
        try:
            self._write(full, [self._ack(full, full.last, END_OF_STREAM, AckKind.END, mark=CONTINUES)])
        except OSError:
            full.close()
            self._file = self._create()
            return
        self._file = self._create()
        with contextlib.suppress(OSError):  # it stays an open file, whole and readable; `repair` can seal it
            self._finish(full, "rolled")
        full.close()

    def _finish(self, file: _OpenFile, reason: str) -> None:
        self._last_seal = write_seal(
            self._fs,
            self._directory,
            self._attempt,
            file.name,
            counts=file.counts,
            data=(file.position, file.data_sha256.hexdigest()),
            acks=(file.num_acks * ACK_SIZE, file.acks_sha256.hexdigest()),
            previous_seal_sha256=self._last_seal,
            reason=reason,
        )


def write_seal(
    file_system: FileSystem,
    directory: Path,
    attempt: AttemptInfo,
    name: SegmentFileName,
    *,
    counts: SealCounts,
    data: tuple[int, str],
    acks: tuple[int, str],
    previous_seal_sha256: str | None,
    reason: str,
) -> str:
    """Makes a whole segment file immutable; `data` and `acks` are (size in bytes, SHA-256). Returns the seal's SHA-256."""
    seal = {
        "format": SEAL_FORMAT,
        "run_id": attempt.run_id,
        "attempt": attempt.attempt,
        "dp_rank": name.dp_rank,
        "file_number": name.number,
        "data": {"name": name.data, "size_bytes": data[0], "sha256": data[1]},
        "acks": {"name": name.acks, "size_bytes": acks[0], "sha256": acks[1]},
        "num_rows": counts.num_rows,
        "num_tokens": counts.num_tokens,
        "num_steps": counts.num_steps,
        "first_step": counts.first_step,
        "last_step": counts.last_step,
        "previous_seal_sha256": previous_seal_sha256,
        "reason": reason,
    }
    text = (json.dumps(seal, indent=1, sort_keys=True) + "\n").encode("utf-8")
    unfinished = directory / (name.seal + IN_PROGRESS)
    file = file_system.create(unfinished)
    try:
        file.write(text)
        file.datasync()
    finally:
        file.close()
    for part in (name.data, name.acks):
        if file_system.exists(directory / (part + IN_PROGRESS)):
            file_system.rename(directory / (part + IN_PROGRESS), directory / part)
    file_system.rename(unfinished, directory / name.seal)
    file_system.sync_directory(directory)
    return hashlib.sha256(text).hexdigest()
