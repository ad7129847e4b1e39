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

from train_hooks.export_format.acknowledgement import EMPTY_SHA256, Ack, AckKind, file_identity
from train_hooks.export_format.errors import ExportStopped
from train_hooks.export_format.filesystem import AppendFile, FileSystem
from train_hooks.export_format.leaf import EMPTY_ROOT, merkle_root
from train_hooks.export_format.paths import IN_PROGRESS, SegmentFileName
from train_hooks.export_format.records import FORMAT_VERSION, AttemptInfo, RunInfo
from train_hooks.export_format.schema import END_OF_STREAM, encode_frame, file_metadata, row_schema
from train_hooks.export_format.seals import SealedFile, SummaryBuilder, new_seal, write_seal
from train_hooks.export_format.writing.frames import Frame

__all__ = ["Frame", "RankWriter"]

CLOSED, CONTINUES = 1, 0


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
    summary: SummaryBuilder
    last: Ack | None = None
    data_sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    acks_sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    acks_size_bytes: int = 0
    writable: bool = True

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
        assert attempt.format_version == FORMAT_VERSION, "attempts of older formats are read, not written"
        self._fs, self._directory, self._run, self._attempt = file_system, directory, run, attempt
        self._dp_rank, self._roll_size_bytes, self._clock = dp_rank, roll_size_bytes, clock
        self._last_hash: bytes | None = None
        self._last_seal: str | None = None
        self._last_step: int | None = None
        self._number = self._durable_number = -1
        self._closed = False
        self._file = self._create()
        encode_frame(
            self._file.schema, (), ""
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
        schema = row_schema(file_metadata(self._run, self._attempt, name), FORMAT_VERSION)
        file = _OpenFile(
            name=name, data=data, acks=acks, schema=schema, identity=identity, summary=SummaryBuilder(self._run)
        )
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
            data = encode_frame(file.schema, frame.rows, frame.records_json)
            blobs.append(self._ack(file, last, data, frame.kind, frame))
            last = blobs[-1][0]
        self._write(file, blobs)
        for ack, _ in blobs:
            if ack.kind is AckKind.STEP:
                file.summary.add(ack)
                self._last_step = ack.global_step

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
            num_tokens=sum(len(row.tokens) for row in frame.rows) if frame else 0,
            record=frame.commitment if frame else EMPTY_SHA256,
            evidence=frame.evidence if frame else (0, 0, 0),
            matched=frame.matched if frame else (0, 0, 0),
            has_gap=frame.has_gap if frame else False,
            has_losses=frame.has_losses if frame else False,
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
        file.last, file.acks_size_bytes = blobs[-1][0], file.acks_size_bytes + len(records)
        file.writable = file.last.kind is not AckKind.END
        self._last_hash = file.last.sha256

    def _roll(self) -> None:
        full = self._file
        with contextlib.suppress(OSError):
            self._write(full, [self._ack(full, full.last, END_OF_STREAM, AckKind.END, mark=CONTINUES)])
        self._replace()

    def _seal(self, file: _OpenFile, *, last: bool) -> None:
        assert file.last is not None, "a file is sealed behind its end record"
        seal = new_seal(
            self._attempt,
            file.name,
            SealedFile(name=file.name.data, size_bytes=file.position, sha256=file.data_sha256.hexdigest()),
            SealedFile(name=file.name.acks, size_bytes=file.acks_size_bytes, sha256=file.acks_sha256.hexdigest()),
            file.summary.summary(),
            file.last,
            last_committed_step=self._last_step,
            last=last,
            reason="closed" if last else "rolled",
            previous_seal_sha256=self._last_seal,
        )
        self._last_seal = seal.sha256  # also where the next line fails: `repair` makes this very seal again
        write_seal(self._fs, self._directory, seal)
