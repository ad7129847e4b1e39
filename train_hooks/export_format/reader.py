"""Reading an export, while it is written or years later: no byte is parsed before its hash was checked.

What a reader believes of a segment file is what the valid chain of its acknowledgement records covers, and of a file
that a later one continues, only the part that the later one names. A step counts once every writer of the attempt has
acknowledged it.
"""

import hashlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from train_hooks.export_format.acknowledgement import Ack, AckKind
from train_hooks.export_format.chain import SegmentFile, WriterLog, add_file
from train_hooks.export_format.compacted import CompactedFiles
from train_hooks.export_format.errors import DamageError, RunError
from train_hooks.export_format.filesystem import FileSystem, OsFileSystem
from train_hooks.export_format.json_files import read_attempt_info, read_run_info
from train_hooks.export_format.paths import IN_PROGRESS, CompactionName, ExportPaths, SegmentFileName
from train_hooks.export_format.records import AttemptInfo, Row, RunInfo, SequenceAddress, StepRecord, StepStatus
from train_hooks.export_format.schema import decode_frame, rows_of_batch

__all__ = ["AttemptReader", "RunReader", "SegmentFile", "StepFrame", "WriterLog"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFrame:
    """One writer's part of one step: checked, parsed, not yet turned into rows."""

    dp_rank: int
    ack: Ack
    batch: pa.RecordBatch
    records: tuple[StepRecord, ...]


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
        """All attempts that said something, by number."""
        found = []
        for number in self.attempt_numbers():
            info = read_attempt_info(self.file_system, self.paths, number)
            if info is not None:
                found.append(AttemptReader(self, info))
        return found

    def attempt_numbers(self) -> list[int]:
        """Numbers of all claimed attempts."""
        if not self.file_system.exists(self.paths.attempts):
            return []
        names = self.file_system.names(self.paths.attempts)
        return sorted(number for name in names if (number := self.paths.attempt_number(name)) is not None)

    def attempt(self, number: int) -> "AttemptReader":
        """One attempt. Raises RunError where there is none of that number."""
        info = read_attempt_info(self.file_system, self.paths, number)
        if info is None:
            raise RunError(f"run {self.info.run_id} has no attempt {number}; it has {self.attempt_numbers()}")
        return AttemptReader(self, info)


class AttemptReader:
    """The files of one attempt."""

    def __init__(self, run: RunReader, info: AttemptInfo) -> None:
        self.run, self.info = run, info
        self.directory = run.paths.attempt_dir(info.attempt)
        self._opened: dict[Path, CompactedFiles] = {}

    def writers(self, dp_rank: int | None = None) -> dict[int, WriterLog]:
        """The chain of each dp_rank that has written, or of one. Raises DamageError where a chain does not hold together."""
        logs = self.writer_logs(dp_rank)
        for log in logs.values():
            for number, file in enumerate(log.files):
                if file.name.number != number:
                    raise DamageError(f"{self.directory}: segment file {number} of dp_rank {log.dp_rank} is missing")
                if file.damage is not None:
                    raise DamageError(
                        f"{file.acks_path}: {file.damage}; run `kiseki export verify` and restore it from a copy"
                    )
        return logs

    def writer_logs(self, dp_rank: int | None = None) -> dict[int, WriterLog]:
        """As `writers`, with whatever is there: for verification, which names what is wrong."""
        entries = self.run.file_system.names(self.directory)
        compacted = self._compactions(entries)
        names = {parsed[0] for entry in entries if (parsed := SegmentFileName.parse(entry)) is not None}
        there = set(entries)
        files: dict[int, list[SegmentFile]] = {}
        for name in sorted(name for name in names if dp_rank in (None, name.dp_rank)):
            self._add_file(files.setdefault(name.dp_rank, []), name, there, compacted.get(name))
        return {dp_rank: WriterLog(dp_rank=dp_rank, files=tuple(found)) for dp_rank, found in files.items()}

    def committed_steps(self, writers: dict[int, WriterLog] | None = None) -> list[int]:
        """Steps that every writer of the attempt has acknowledged, ascending."""
        writers = self.writers() if writers is None else writers
        if len(writers) < self.info.num_writers:
            return []
        sets = [{ack.global_step for _, ack in writer.steps()} for writer in writers.values()]
        return sorted(set.intersection(*sets)) if sets else []

    def frame(self, file: SegmentFile, ack: Ack) -> StepFrame:
        """One frame, its hash checked before it is parsed. Raises DamageError."""
        batch, records = self._decoded(file, ack)
        if batch.num_rows != ack.num_rows:
            raise DamageError(
                f"{file.data_path}: expected {ack.num_rows} rows in frame {ack.number}, found {batch.num_rows}"
            )
        return StepFrame(dp_rank=file.name.dp_rank, ack=ack, batch=batch, records=records)

    def frames(self, first_step: int, last_step: int) -> Iterator[StepFrame]:
        """Every writer's frames of steps in [first_step, last_step], writer after writer."""
        for writer in self.writers().values():
            for file in writer.files:
                for ack in file.acks:
                    if ack.kind is AckKind.STEP and first_step <= ack.global_step <= last_step:
                        yield self.frame(file, ack)

    def rows(self, frame: StepFrame) -> list[Row]:
        """The rows of a frame, by micro-batch and slot."""
        info = self.run.info
        return rows_of_batch(frame.batch, info.run_id, self.info.attempt, frame.dp_rank, info.token_dtype)

    def row(self, address: SequenceAddress) -> Row | None:
        """One row; None where it was not acknowledged. Reads all acknowledgements of its dp_rank. Raises DamageError."""
        for log in self.writers(address.dp_rank).values():
            for file, ack in log.steps():
                rows = self.rows(self.frame(file, ack)) if ack.global_step == address.global_step else ()
                for row in rows:
                    if row.address == address:
                        return row
        return None

    def step_records(self, writers: dict[int, WriterLog] | None = None) -> Iterator[tuple[int, StepRecord]]:
        """(dp_rank, record) of every metric and gap that was written."""
        for writer in (self.writers() if writers is None else writers).values():
            for file in writer.files:
                for ack in file.acks:
                    if ack.kind in (AckKind.STEP, AckKind.NOTE):
                        for record in self.frame(file, ack).records:
                            yield writer.dp_rank, record

    def step_status(self, writers: dict[int, WriterLog] | None = None) -> dict[int, StepStatus]:
        """The status of each step, as its lowest dp_rank gave it."""
        statuses: dict[int, StepStatus] = {}
        for writer in (self.writers() if writers is None else writers).values():
            for _, ack in writer.steps():
                if ack.status is not None:
                    statuses.setdefault(ack.global_step, ack.status)
        return statuses

    def _decoded(self, file: SegmentFile, ack: Ack) -> tuple[pa.RecordBatch, tuple[StepRecord, ...]]:
        compacted = file.compacted
        if compacted is None:
            try:
                return decode_frame(self._checked(file, file.acks[0]), self._checked(file, ack))
            except FileNotFoundError:  # it was compacted since it was listed, or it is lost
                compacted = self._compactions(self.run.file_system.names(self.directory)).get(file.name)
        if compacted is None:
            raise DamageError(f"{self.directory / file.name.data} is missing; restore it from a copy of the export")
        return compacted.frame(file.name.number, ack)

    def _checked(self, file: SegmentFile, ack: Ack) -> bytes:
        try:
            data = self.run.file_system.read(file.data_path, ack.start, ack.end)
        except FileNotFoundError:  # it was sealed since it was listed
            data = self.run.file_system.read(self.directory / file.name.data, ack.start, ack.end)
        if len(data) != ack.end - ack.start or hashlib.sha256(data).digest() != ack.frame_sha256:
            raise DamageError(
                f"{file.data_path}: bytes {ack.start}–{ack.end} (step {ack.global_step}) do not match the hash that was "
                "acknowledged; run `kiseki export verify` and restore the file from a copy"
            )
        return data

    def _compactions(self, entries: Sequence[str]) -> dict[SegmentFileName, CompactedFiles]:
        found: dict[SegmentFileName, CompactedFiles] = {}
        for entry in entries:
            if CompactionName.parse(entry) is not None and entry.endswith(".json"):
                path = self.directory / entry
                if path not in self._opened:
                    self._opened[path] = CompactedFiles(self.run.file_system, path)
                for name in self._opened[path].names():
                    before = found.get(name)
                    if before is None or before.name.version < self._opened[path].name.version:
                        found[name] = self._opened[path]
        return found

    def _add_file(
        self,
        files: list[SegmentFile],
        name: SegmentFileName,
        there: Container[str],
        compacted: CompactedFiles | None,
    ) -> None:
        """`there` was listed before the records are read: what was sealed then is whole now."""
        file_system = self.run.file_system
        acks_path, data_path = (
            self.directory / (part if part in there else part + IN_PROGRESS) for part in (name.acks, name.data)
        )
        try:
            raw = file_system.read(acks_path)
        except FileNotFoundError:  # renamed meanwhile, or never there
            acks_path = self.directory / name.acks
            raw = file_system.read(acks_path) if file_system.exists(acks_path) else b""
        file = SegmentFile(
            name=name, data_path=data_path, acks_path=acks_path, sealed=name.seal in there, acks=(), torn=None,
            compacted=compacted,
        )  # fmt: skip
        add_file(self.info, files, file, raw)
