"""Reading an export, while it is written or years later: no byte is parsed before its hash was checked.

What a reader believes of a segment file is what the valid chain of its acknowledgement records covers, and of a file
that a later one continues, only the part that the later one names. A step counts once every writer of the attempt has
acknowledged it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from train_hooks.export_format.acknowledgement import ACK_SIZE, Ack, AckKind, decode_acks, file_identity
from train_hooks.export_format.errors import DamageError, RunError
from train_hooks.export_format.filesystem import FileSystem, OsFileSystem
from train_hooks.export_format.json_files import read_attempt_info, read_run_info
from train_hooks.export_format.paths import IN_PROGRESS, ExportPaths, SegmentFileName
from train_hooks.export_format.records import AttemptInfo, Row, RunInfo, StepRecord, StepStatus
from train_hooks.export_format.schema import decode_frame, rows_of_batch

__all__ = ["AttemptReader", "RunReader", "SegmentFile", "StepFrame", "WriterLog"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentFile:
    """One segment file and the acknowledgement records of it that are to be believed."""

    name: SegmentFileName
    data_path: Path
    acks_path: Path
    sealed: bool
    acks: Sequence[Ack]
    torn: str | None

    @property
    def ended(self) -> Ack | None:
        """The end record, where the writer got to write one."""
        return self.acks[-1] if self.acks and self.acks[-1].kind is AckKind.END else None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFrame:
    """One writer's part of one step: checked, parsed, not yet turned into rows."""

    dp_rank: int
    ack: Ack
    batch: pa.RecordBatch
    records: tuple[StepRecord, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterLog:
    """All segment files of one dp_rank in one attempt, as one chain."""

    dp_rank: int
    files: tuple[SegmentFile, ...]

    def steps(self) -> Iterator[tuple[SegmentFile, Ack]]:
        """Every acknowledged step in the order of the chain."""
        for file in self.files:
            for ack in file.acks:
                if ack.kind is AckKind.STEP:
                    yield file, ack

    @property
    def last_step(self) -> int | None:
        """The newest acknowledged step."""
        return max((ack.global_step for _, ack in self.steps()), default=None)

    @property
    def closed(self) -> bool:
        """Whether the writer ended by itself."""
        ended = self.files[-1].ended if self.files else None
        return ended is not None and ended.global_step == 1


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
        return bytes.fromhex(self.file_system.read(path).decode("ascii").strip())

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

    def writers(self) -> dict[int, WriterLog]:
        """The chain of each dp_rank that has written. Raises DamageError where a chain does not hold together."""
        names: dict[int, set[SegmentFileName]] = {}
        for entry in self.run.file_system.names(self.directory):
            parsed = SegmentFileName.parse(entry)
            if parsed is not None and parsed[1] != "seal.json":
                names.setdefault(parsed[0].dp_rank, set()).add(parsed[0])
        return {dp_rank: self._writer(dp_rank, sorted(found)) for dp_rank, found in sorted(names.items())}

    def committed_steps(self, writers: dict[int, WriterLog] | None = None) -> list[int]:
        """Steps that every writer of the attempt has acknowledged, ascending."""
        writers = self.writers() if writers is None else writers
        if len(writers) < self.info.num_writers:
            return []
        sets = [{ack.global_step for _, ack in writer.steps()} for writer in writers.values()]
        return sorted(set.intersection(*sets)) if sets else []

    def frame(self, file: SegmentFile, ack: Ack) -> StepFrame:
        """One frame, its hash checked before it is parsed. Raises DamageError."""
        schema = self._checked(file, file.acks[0])
        batch, records = decode_frame(schema, self._checked(file, ack))
        if batch.num_rows != ack.num_rows:
            raise DamageError(f"{file.data_path}: expected {ack.num_rows} rows in frame {ack.number}")
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

    def _checked(self, file: SegmentFile, ack: Ack) -> bytes:
        data = self.run.file_system.read(file.data_path, ack.start, ack.end)
        if len(data) != ack.end - ack.start or hashlib.sha256(data).digest() != ack.frame_sha256:
            raise DamageError(
                f"{file.data_path}: bytes {ack.start}–{ack.end} (step {ack.global_step}) do not match the hash that was "
                "acknowledged; run `kiseki export verify` and restore the file from a copy"
            )
        return data

    def _present(self, name: str) -> tuple[Path, bool]:
        sealed = self.directory / name
        if self.run.file_system.exists(sealed):
            return sealed, True
        return self.directory / (name + IN_PROGRESS), False

    def _writer(self, dp_rank: int, names: Sequence[SegmentFileName]) -> WriterLog:
        files: list[SegmentFile] = []
        for number, name in enumerate(names):
            if name.number != number:
                raise DamageError(f"{self.directory}: segment file {number} of dp_rank {dp_rank} is missing")
            self._add_file(files, name)
        return WriterLog(dp_rank=dp_rank, files=tuple(files))

    def _add_file(self, files: list[SegmentFile], name: SegmentFileName) -> None:
        (data_path, _), (acks_path, _) = self._present(name.data), self._present(name.acks)
        file_system = self.run.file_system
        raw = file_system.read(acks_path) if file_system.exists(acks_path) else b""
        sealed = file_system.exists(self.directory / name.seal)
        acks, torn = self._chain(files, name, raw)
        files.append(
            SegmentFile(name=name, data_path=data_path, acks_path=acks_path, sealed=sealed, acks=acks, torn=torn)
        )

    def _chain(self, files: list[SegmentFile], name: SegmentFileName, raw: bytes) -> tuple[Sequence[Ack], str | None]:
        """Decode `raw`; where its first record continues an earlier file before that one's end, cut that one there."""
        if len(raw) < ACK_SIZE:
            return (), "acknowledgement record 0 is cut or damaged" if raw else None
        first: tuple[Sequence[Ack], str | None] | None = None
        for index in range(len(files) - 1, -1, -1):
            for position in range(len(files[index].acks) - 1, -1, -1):
                acks, torn = decode_acks(raw, self._identity(name, files[index].acks[position].sha256))
                first = first or (acks, torn)
                if acks:
                    self._cut(files, index, position + 1)
                    return acks, torn
        acks, torn = decode_acks(raw, self._identity(name, None))
        if acks:
            self._cut(files, -1, 0)
            return acks, torn
        return first or (acks, torn)

    def _identity(self, name: SegmentFileName, previous: bytes | None) -> bytes:
        info = self.info
        return file_identity(info.run_id, info.attempt, info.claim, name.dp_rank, name.number, previous)

    @staticmethod
    def _cut(files: list[SegmentFile], index: int, num_acks: int) -> None:
        for later in range(index + 1, len(files)):
            files[later] = _with_acks(files[later], 0)
        if index >= 0 and num_acks < len(files[index].acks):
            files[index] = _with_acks(files[index], num_acks)


def _with_acks(file: SegmentFile, num_acks: int) -> SegmentFile:
    return SegmentFile(
        name=file.name,
        data_path=file.data_path,
        acks_path=file.acks_path,
        sealed=file.sealed,
        acks=file.acks[:num_acks],
        torn=file.torn,
    )
