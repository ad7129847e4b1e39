"""Reading an export, while it is written or years later: no byte is parsed before its hash was checked.

What a reader believes of a segment file is what the valid chain of its acknowledgement records covers, and of a file
that a later one continues, only the part that the later one names. A step counts once every writer of the attempt has
acknowledged it.
"""

import hashlib
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from train_hooks.export_format.acknowledgement import Ack, AckKind, AckTable, ack_size
from train_hooks.export_format.barriers import barrier_steps, read_barrier
from train_hooks.export_format.errors import DamageError, RunError
from train_hooks.export_format.filesystem import FileSystem, OsFileSystem
from train_hooks.export_format.json_files import expect_attempts_in_order, read_attempt_info, read_run_info
from train_hooks.export_format.paths import IN_PROGRESS, ExportPaths, SegmentFileName
from train_hooks.export_format.reading.chain import SegmentFile, WriterLog, add_file
from train_hooks.export_format.reading.compacted import CompactedFiles
from train_hooks.export_format.reading.frame_reader import FrameReader, StepFrame
from train_hooks.export_format.records import (
    AttemptInfo,
    Row,
    RowLoss,
    RunInfo,
    SequenceAddress,
    StepRecord,
    StepStatus,
)
from train_hooks.export_format.schema import rows_of_batch
from train_hooks.export_format.seals import Seal, read_seal

__all__ = ["AttemptReader", "RunReader", "SegmentFile", "StepFrame", "WriterLog", "expect_writers"]

_HEAD_RECORDS = 1024


class RunReader:
    """A run directory, read-only. Opening reads `run.json`; each call looks at the files anew."""

    def __init__(self, run_dir: Path | str, file_system: FileSystem | None = None) -> None:
        """Raises RunError where `run_dir` is not a run directory of a version that we read."""
        self.paths = ExportPaths(Path(run_dir))
        self.file_system = file_system or OsFileSystem()
        self.info: RunInfo = read_run_info(self.file_system, self.paths)

    def tokenizer_path(self) -> Path:
        """The copied tokenizer, its bytes checked. Raises RunError where the run has none."""
        if self.info.tokenizer_file is None:
            raise RunError(f"run {self.info.run_id} was exported without a tokenizer; give token ids instead of text")
        path = self.paths.tokenizer_dir / self.info.tokenizer_file
        if not self.file_system.exists(path):
            raise DamageError(f"{path} is missing; restore it from a copy of the export")
        found = hashlib.sha256(self.file_system.read(path)).hexdigest()
        if found != self.info.tokenizer_sha256:
            raise DamageError(f"{path}: expected SHA-256 {self.info.tokenizer_sha256}, found {found}")
        return path

    def secret(self) -> bytes:
        """The run's secret, which salts the leaves. Raises DamageError where it is missing."""
        path = self.paths.secret
        if not self.file_system.exists(path):
            raise DamageError(f"{path} is missing; without it the leaves of this run cannot be recomputed")
        data = self.file_system.read(path)
        found = hashlib.sha256(data).hexdigest()
        if self.info.secret_sha256 not in (None, found):
            raise DamageError(
                f"{path}: expected SHA-256 {self.info.secret_sha256}, found {found}; restore it from a copy"
            )
        try:
            return bytes.fromhex(data.decode("ascii").strip())
        except ValueError as error:
            raise DamageError(f"{path}: expected hexadecimal digits; restore it from a copy of the export") from error

    def attempts(self) -> list["AttemptReader"]:
        """All attempts that said something, by number.

        Raises RunError for an attempt of a format that we do not know, or older than one before it; DamageError for
        one without its `attempt.json`.
        """
        numbers = self.attempt_numbers()
        infos = [read_attempt_info(self.file_system, self.paths, number, self.info) for number in numbers]
        found = [info for info in infos if info is not None]
        expect_attempts_in_order(self.info, found)
        return [AttemptReader(self, info) for info in found]

    def attempt_numbers(self) -> list[int]:
        """Numbers of all claimed attempts."""
        if not self.file_system.exists(self.paths.attempts):
            return []
        names = self.file_system.names(self.paths.attempts)
        return sorted(number for name in names if (number := self.paths.attempt_number(name)) is not None)

    def attempt(self, number: int) -> "AttemptReader":
        """One attempt. Raises RunError where there is none of that number."""
        info = None
        if self.file_system.exists(self.paths.attempt_dir(number)):
            info = read_attempt_info(self.file_system, self.paths, number, self.info)
        if info is None:
            raise RunError(f"run {self.info.run_id} has no attempt {number}; it has {self.attempt_numbers()}")
        return AttemptReader(self, info)


class AttemptReader:
    """The files of one attempt."""

    def __init__(self, run: RunReader, info: AttemptInfo) -> None:
        self.run, self.info = run, info
        self.directory = run.paths.attempt_dir(info.attempt)
        self._frame_reader = FrameReader(run.file_system, self.directory, info.format_version)

    def writers(self, dp_rank: int | None = None) -> dict[int, WriterLog]:
        """The chain of each dp_rank that has written, or of one. Raises DamageError where a chain does not hold together."""
        logs = self.writer_logs(dp_rank)
        expect_writers(self.info, logs)
        there = set(self.run.file_system.names(self.directory))
        for log in logs.values():
            for number, file in enumerate(log.files):
                if file.name.number != number:
                    raise DamageError(f"{self.directory}: segment file {number} of dp_rank {log.dp_rank} is missing")
                if not file.sealed:
                    self.expect_seal(file.name, there)
                fault = file.damage or file.contradiction(self.run.info)
                if fault is not None:
                    raise DamageError(
                        f"{file.acks_path}: {fault}; run `kiseki export verify` and restore it from a copy"
                    )
        return logs

    def writer_logs(self, dp_rank: int | None = None, *, thorough: bool = False) -> dict[int, WriterLog]:
        """As `writers`, with whatever is there: for verification, which names what is wrong.

        thorough: follow the chain through sealed files too, where else the hash in the seal is enough.
        """
        entries = self.run.file_system.names(self.directory)
        compacted = self._frame_reader.compactions(entries)
        names = {parsed[0] for entry in entries if (parsed := SegmentFileName.parse(entry)) is not None}
        there = set(entries)
        files: dict[int, list[SegmentFile]] = {}
        for name in sorted(name for name in names if dp_rank in (None, name.dp_rank)):
            seal = None if thorough else self.seal(name, there)
            self._add_file(files.setdefault(name.dp_rank, []), name, there, compacted.get(name), seal)
        return {dp_rank: WriterLog(dp_rank=dp_rank, files=tuple(found)) for dp_rank, found in files.items()}

    def seal(self, name: SegmentFileName, there: Container[str]) -> Seal | None:
        """The seal of a segment file, `there` being the names in the directory; None where none can be read."""
        if name.seal not in there:
            return None
        path = self.directory / name.seal
        try:
            return read_seal(path, self.run.file_system.read(path))
        except (DamageError, FileNotFoundError):  # the records are followed one by one instead
            return None

    def dp_ranks(self) -> set[int]:
        """The ranks that have files here. No file is read."""
        parsed = map(SegmentFileName.parse, self.run.file_system.names(self.directory))
        return {each[0].dp_rank for each in parsed if each is not None}

    def expect_seal(self, name: SegmentFileName, there: Container[str]) -> None:
        """Raises DamageError where data or records have their final name, and no seal is there under either name."""
        seals = (name.seal, name.seal + IN_PROGRESS)
        if not any(part in there for part in (name.data, name.acks)) or any(seal in there for seal in seals):
            return
        if not any(
            self.run.file_system.exists(self.directory / seal) for seal in seals
        ):  # it was not renamed meanwhile
            raise DamageError(f"{self.directory / name.seal} is missing; restore it from a copy of the export")

    def committed_steps(self, writers: dict[int, WriterLog] | None = None) -> Sequence[int]:
        """Steps that every writer of the attempt has acknowledged, ascending."""
        writers = self.writers() if writers is None else writers
        if len(writers) < self.info.num_writers:
            return []
        of_writers = [writer.step_numbers for writer in writers.values()]
        first = self.info.resume_step + 1
        if all(np.array_equal(steps, np.arange(first, first + len(steps))) for steps in of_writers):
            return range(first, first + min(map(len, of_writers)))
        return sorted(set.intersection(*(set(steps.tolist()) for steps in of_writers)))

    def barrier_step(self) -> int | None:
        """The newest step that a barrier record covers. Raises DamageError where that record is another attempt's."""
        steps = barrier_steps(self.run.file_system, self.directory)
        if not steps:
            return None
        return read_barrier(self.run.file_system, self.run.paths, self.info, steps[-1]).global_step

    def final_step(self, writers: dict[int, WriterLog] | None = None) -> int | None:
        """The newest final step: it and all before it will never be written again. None where no step is final yet.

        A committed step is final once a barrier record covers it, or once every writer has sealed the file that holds
        it. Of other steps a growing export can still show another frame later. Raises DamageError where records are
        lost that a barrier record covers.
        """
        barrier = self.barrier_step()  # before the records, which by then hold all that it covers
        given, writers = writers is not None, self.writers() if writers is None else writers
        committed = self.committed_steps(writers)
        if barrier is not None and (not committed or committed[-1] < barrier) and barrier > self.info.resume_step:
            if given:  # they may be older than the barrier record
                return self.final_step()
            raise DamageError(
                f"{self.directory}: a barrier record covers step {barrier}, and not every writer has its steps up to "
                f"{committed[-1] if committed else self.info.resume_step}; run `kiseki export verify` and restore "
                "what is lost"
            )
        if not committed:
            return None
        final = min(*(_final_step_of(log, barrier or 0) for log in writers.values()), committed[-1])
        return final if final > self.info.resume_step else None

    def frame(self, file: SegmentFile, ack: Ack) -> StepFrame:
        """One frame, its hash checked before it is parsed. Raises DamageError."""
        (found,) = self.frames_of(file, [ack])
        return found

    def frames_of(self, file: SegmentFile, acks: Sequence[Ack]) -> Iterator[StepFrame]:
        """Frames of one file, in order; those that follow one another are read at once, up to 8 MiB. Raises DamageError."""
        return self._frame_reader.frames_of(file, acks)

    def first_frame(self, dp_rank: int) -> StepFrame | None:
        """The first frame with rows, if it is among the writer's first 1,024 records. Reads the head of its first file."""
        entries = self.run.file_system.names(self.directory)
        name = SegmentFileName(dp_rank=dp_rank, number=0)
        path, head = self.read_acks(name, entries, _HEAD_RECORDS * ack_size(self.info.format_version))
        if not head:
            return None
        files: list[SegmentFile] = []
        self._append_file(
            files, name, set(entries), self._frame_reader.compactions(entries).get(name), None, path, head
        )
        filled = [ack for ack in files[0].acks if ack.kind is AckKind.STEP and ack.num_rows]
        return self.frame(files[0], filled[0]) if filled else None

    def frames(self, first_step: int, last_step: int) -> Iterator[StepFrame]:
        """Every writer's frames of steps in [first_step, last_step], writer after writer."""
        for writer in self.writers().values():
            for file, acks in writer.steps_between(first_step, last_step):
                yield from self.frames_of(file, acks)

    def rows(self, frame: StepFrame) -> list[Row]:
        """The rows of a frame, by micro-batch and slot."""
        return rows_of_batch(frame.batch, self.run.info, self.info, frame.dp_rank)

    def row(self, address: SequenceAddress) -> Row | None:
        """One row; None where it was not acknowledged. Reads all acknowledgements of its dp_rank. Raises DamageError."""
        step = address.global_step
        for log in self.writers(address.dp_rank).values():
            for file, acks in log.steps_between(step, step):
                for frame in self.frames_of(file, acks):
                    for row in self.rows(frame):
                        if row.address == address:
                            return row
        return None

    def step_records(self, writers: dict[int, WriterLog] | None = None) -> Iterator[tuple[int, StepRecord]]:
        """(dp_rank, record) of every metric and gap that was written, and of losses that came late."""
        for writer in (self.writers() if writers is None else writers).values():
            for file in writer.files:
                acks = [ack for ack in file.acks if ack.kind in (AckKind.STEP, AckKind.NOTE)]
                for frame in self.frames_of(file, acks):
                    for record in frame.records:
                        yield writer.dp_rank, record

    def late_losses(self, writers: dict[int, WriterLog] | None = None) -> Iterator[tuple[SequenceAddress, RowLoss]]:
        """Losses that came after their step was written. Reads the notes that hold some, and no others."""
        for writer in (self.writers() if writers is None else writers).values():
            for file in writer.files:
                acks = file.acks
                if acks.format_version < 3:
                    continue
                places = np.flatnonzero((acks.records["kind"] == AckKind.NOTE) & (acks.records["flags"] & 2 > 0))
                for frame in self.frames_of(file, [acks[int(place)] for place in places]):
                    for record in frame.records:
                        for loss in record.rows:
                            yield self._address(writer.dp_rank, record.global_step, loss), loss

    def step_status(self, writers: dict[int, WriterLog] | None = None) -> dict[int, StepStatus]:
        """The status of each step, as its lowest dp_rank gave it."""
        statuses: dict[int, StepStatus] = {}
        for writer in (self.writers() if writers is None else writers).values():
            for summary in writer.summaries(self.run.info):
                for span in summary.step_ranges:
                    if span.status is not None:
                        for step in range(span.first_step, span.last_step + 1):
                            statuses.setdefault(step, span.status)
        return statuses

    def _address(self, dp_rank: int, global_step: int, loss: RowLoss) -> SequenceAddress:
        return SequenceAddress(
            run_id=self.info.run_id, attempt=self.info.attempt, global_step=global_step, dp_rank=dp_rank,
            microbatch=loss.microbatch, slot=loss.slot,
        )  # fmt: skip

    def _add_file(
        self,
        files: list[SegmentFile],
        name: SegmentFileName,
        there: Container[str],
        compacted: CompactedFiles | None,
        seal: Seal | None,
    ) -> None:
        """`there` was listed before the records are read: what was sealed then is whole now."""
        acks_path, raw = self.read_acks(name, there)
        self._append_file(files, name, there, compacted, seal, acks_path, raw)

    def read_acks(
        self, name: SegmentFileName, there: Container[str], size_bytes: int | None = None
    ) -> tuple[Path, bytes]:
        """The records of a file, or their head; b'' where there are none. It may be sealed or repaired meanwhile."""
        first = name.acks if name.acks in there else name.acks + IN_PROGRESS
        paths = [self.directory / each for each in (first, name.acks, name.acks + IN_PROGRESS, name.acks)]
        for path in paths:
            try:
                return path, self.run.file_system.read(path, 0, size_bytes)
            except FileNotFoundError:
                continue
        return paths[-1], b""

    def _append_file(
        self,
        files: list[SegmentFile],
        name: SegmentFileName,
        there: Container[str],
        compacted: CompactedFiles | None,
        seal: Seal | None,
        acks_path: Path,
        raw: bytes,
    ) -> None:
        data = name.data if name.data in there else name.data + IN_PROGRESS
        file = SegmentFile(
            name=name, data_path=self.directory / data, acks_path=acks_path, sealed=name.seal in there,
            acks=AckTable.empty(self.info.format_version), torn=None, compacted=compacted, seal=seal,
        )  # fmt: skip
        add_file(self.info, files, file, raw)


def expect_writers(attempt: AttemptInfo, dp_ranks: Iterable[int]) -> None:
    """Raises DamageError for files of a dp_rank that the attempt does not have."""
    highest = max(dp_ranks, default=0)
    if highest >= attempt.num_writers:
        raise DamageError(
            f"attempt {attempt.attempt} has files of dp_rank {highest}, and {attempt.num_writers} writers: they are another "
            "attempt's; run `kiseki export verify`, which names them"
        )


def _final_step_of(log: WriterLog, barrier: int) -> int:
    """The newest step up to which all of a writer's steps are covered by a barrier record or in sealed files."""
    final = barrier
    for file in log.files:
        steps = file.acks.records["global_step"][file.acks.indices_of(AckKind.STEP)]
        if len(steps) and not file.sealed and steps[-1] > barrier:
            break
        final = max(final, int(steps[-1])) if len(steps) else final
    return final
