"""Writing one data-parallel rank's rows: the durability rules.

1. A segment file and its `.acks` are created exclusively and their names synced before a byte is written.
2. `append` writes the frames and syncs them, then writes their acknowledgement records and syncs those. It returns only
   then: what it returned for is acknowledged. One call is two syncs, however many steps it holds.
3. A failed write or sync is final for its file. Nothing is tried again on it: a new file continues the chain from the
   last acknowledged record and takes the frames again from memory. If that fails too, the OSError goes to the caller.
4. A full file is sealed only after the next one exists, so a missing last file cannot pass for a short run.
   From then on each of its files names, in its seal, whether it is the last one.
5. Sealing: end-of-stream frame and its record, then the seal under its `.inprogress` name, synced with its directory;
   rename data and records, sync the directory; rename the seal, sync again. Killed between any two of these, a reader
   sees the same rows.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from train_hooks.export_format.acknowledgement import ACK_SIZE, Ack, AckKind, file_identity
from train_hooks.export_format.errors import ExportStopped
from train_hooks.export_format.filesystem import AppendFile, FileSystem
from train_hooks.export_format.json_files import info_sha256
from train_hooks.export_format.leaf import EMPTY_ROOT, merkle_root
from train_hooks.export_format.paths import IN_PROGRESS, SegmentFileName
from train_hooks.export_format.records import AttemptInfo, Row, RunInfo, StepRecord, StepStatus
from train_hooks.export_format.schema import END_OF_STREAM, encode_frame, file_metadata, row_schema
from train_hooks.export_format.seals import Seal, SealCounts, SealedPart, write_seal

__all__ = ["Frame", "RankWriter"]

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
class _OpenFile:
    """A segment file that grows. `last` and `position` speak of what is acknowledged, never of what was only written.

    writable: whether nothing has failed on it yet, and it has not ended.
    """

    name: SegmentFileName
    data: AppendFile
    acks: AppendFile
    schema: pa.Schema
    identity: bytes
    last: Ack | None = None
    data_sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    acks_sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    num_acks: int = 0
    writable: bool = True
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
        self._attempt_sha256 = info_sha256(attempt)
        self._last_hash: bytes | None = None
        self._last_seal: str | None = None
        self._number = self._durable_number = -1
        self._closed = False
        self._file = self._create()
        encode_frame(
            self._file.schema, (), ()
        )  # pyarrow imports more on first use, which fails while Python shuts down

    def append(self, frames: Sequence[Frame]) -> None:
        """Returns once all frames are durable and acknowledged. Raises OSError when a second file failed as well.

        After an OSError nothing of `frames` is acknowledged; the same call may be made again, and takes a new file.
        """
        self._check_open()
        if not frames:
            return
        if not self._file.writable:
            self._replace()
        if self._file.last is not None and self._file.position >= self._roll_size_bytes:
            self._roll()
        try:
            self._append(self._file, frames)
        except OSError:
            self._replace()
            self._append(self._file, frames)

    def close(self) -> None:
        """Seals the last file. OSError leaves it open but whole: every acknowledged row can be read. Call it once."""
        self._check_open()
        self._closed = True
        if not self._file.writable:
            self._replace()
        file = self._file
        try:
            if file.last is None:
                self._append(file, ())
            self._write(file, [self._ack(file, file.last, END_OF_STREAM, AckKind.END, mark=CLOSED)])
            self._seal(file, last=True)
        finally:
            file.close()

    def abandon(self) -> None:
        """Gives the files back without sealing, as a crash would."""
        self._closed = True
        self._file.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ExportStopped(f"the writer of dp_rank {self._dp_rank} is closed; attach again to go on")

    def _replace(self) -> None:
        """A new file for one that is full or failed. The new one is locked before the old one is let go."""
        old, self._file = self._file, self._create()
        if old.last is not None and old.last.kind is AckKind.END:
            with contextlib.suppress(OSError):  # it stays an open file, whole and readable; `repair` can seal it
                self._seal(old, last=False)
        with contextlib.suppress(OSError):
            old.close()

    def _create(self) -> _OpenFile:
        if self._durable_number < self._number:  # the last one was not named durably: never leave a hole behind
            self._fs.sync_directory(self._directory)
        name = SegmentFileName(dp_rank=self._dp_rank, number=self._number + 1)
        data = self._fs.create(self._directory / (name.data + IN_PROGRESS))
        self._number += 1
        try:
            acks = self._fs.create(self._directory / (name.acks + IN_PROGRESS))
        except OSError:
            data.close()
            raise
        identity = file_identity(
            self._run.run_id, self._attempt.attempt, self._attempt.claim, self._dp_rank, self._number, self._last_hash
        )
        schema = row_schema(file_metadata(self._run, self._attempt.attempt, name))
        file = _OpenFile(name=name, data=data, acks=acks, schema=schema, identity=identity)
        try:
            self._fs.sync_directory(self._directory)
        except OSError:
            file.close()
            raise
        self._durable_number = self._number
        return file

    def _append(self, file: _OpenFile, frames: Sequence[Frame]) -> None:
        blobs = [] if file.last else [self._ack(file, None, file.schema.serialize().to_pybytes(), AckKind.SCHEMA)]
        last = blobs[-1][0] if blobs else file.last
        for frame in frames:
            data = encode_frame(file.schema, frame.rows, frame.records)
            blobs.append(self._ack(file, last, data, frame.kind, frame))
            last = blobs[-1][0]
        self._write(file, blobs)
        for frame in frames:
            if frame.kind is AckKind.STEP:
                file.counts.add_step(frame.global_step, len(frame.rows), _num_tokens(frame))

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
            num_tokens=_num_tokens(frame) if self._run.shorter_rows else None,
        )
        return ack, data

    def _write(self, file: _OpenFile, blobs: Sequence[tuple[Ack, bytes]]) -> None:
        data = b"".join(blob for _, blob in blobs)
        records = b"".join(ack.encode() for ack, _ in blobs)
        file.writable = False
        file.data.write(data)
        file.data.datasync()
        file.acks.write(records)
        file.acks.datasync()
        file.data_sha256.update(data)
        file.acks_sha256.update(records)
        file.last, file.num_acks = blobs[-1][0], file.num_acks + len(blobs)
        file.writable = file.last.kind is not AckKind.END
        self._last_hash = file.last.sha256

    def _roll(self) -> None:
        full = self._file
        with contextlib.suppress(OSError):
            self._write(full, [self._ack(full, full.last, END_OF_STREAM, AckKind.END, mark=CONTINUES)])
        self._replace()

    def _seal(self, file: _OpenFile, *, last: bool) -> None:
        counts = file.counts
        seal = Seal(
            run_id=self._run.run_id,
            attempt=self._attempt.attempt,
            attempt_sha256=self._attempt_sha256,
            dp_rank=self._dp_rank,
            file_number=file.name.number,
            last=last,
            reason="closed" if last else "rolled",
            data=SealedPart(name=file.name.data, size_bytes=file.position, sha256=file.data_sha256.hexdigest()),
            acks=SealedPart(
                name=file.name.acks, size_bytes=file.num_acks * ACK_SIZE, sha256=file.acks_sha256.hexdigest()
            ),
            num_rows=counts.num_rows,
            num_tokens=counts.num_tokens,
            num_steps=counts.num_steps,
            first_step=counts.first_step,
            last_step=counts.last_step,
            previous_seal_sha256=self._last_seal,
        )
        self._last_seal = seal.sha256  # also where the next line fails: `repair` makes this very seal again
        write_seal(self._fs, self._directory, seal)


def _num_tokens(frame: Frame | None) -> int:
    return sum(len(row.tokens) for row in frame.rows) if frame else 0
