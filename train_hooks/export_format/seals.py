"""Seals: the small JSON file that makes a segment file immutable and believable.

A seal names the sizes and hashes of the data and of the acknowledgement records, what they hold, the `attempt.json`
that they belong to, and the seal of the writer's file before. It is durable under its `.inprogress` name before data
and records are renamed, and renamed itself once these names are durable. So whoever sees a final name of data or
records and no seal under either name knows that the seal was lost, not that the writer died.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.acknowledgement import Ack, AckKind, AckTable, Counts, status_of_code
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.filesystem import FileSystem
from train_hooks.export_format.json_files import decode_document, encode_document, info_sha256
from train_hooks.export_format.paths import IN_PROGRESS, SegmentFileName
from train_hooks.export_format.records import AttemptInfo, RunInfo, StepStatus

__all__ = [
    "FileSummary",
    "Seal",
    "SealedFile",
    "StepSpan",
    "SummaryBuilder",
    "new_seal",
    "publish_seal",
    "read_seal",
    "summary_of",
    "write_seal",
]

SEAL_FORMAT, OLD_SEAL_FORMAT = "kiseki-seal-v3", "kiseki-seal-v1"
_SINCE_3 = ("num_gaps", "last_committed_step", "last_record_sha256", "last_unix_time_us", "step_ranges")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSpan:
    """Consecutive steps `first_step` to `last_step`, both included, of one writer that are alike in all that is
    counted.

    num_rows, num_tokens, evidence, matched: of each step, as in its acknowledgement record. has_gap: None where the
    format does not say.
    """

    first_step: int
    last_step: int
    status: StepStatus | None
    num_rows: int
    num_tokens: int
    evidence: Counts
    matched: Counts
    has_gap: bool | None

    @property
    def num_steps(self) -> int:
        """How many steps."""
        return self.last_step - self.first_step + 1

    def to_list(self) -> list[object]:
        """As the seal keeps it."""
        return [
            self.first_step, self.last_step, None if self.status is None else self.status.value, self.num_rows,
            self.num_tokens, *self.evidence, *self.matched, int(bool(self.has_gap)),
        ]  # fmt: skip

    @classmethod
    def from_list(cls, item: Sequence[Any]) -> "StepSpan":
        """From what a seal keeps. Raises ValueError or TypeError for something else."""
        first, last, status, num_rows, num_tokens, *counts, gap = item
        if len(counts) != 6 or not all(type(number) is int for number in (first, last, num_rows, num_tokens, *counts)):
            raise ValueError(f"step range {item}")
        return cls(
            first_step=first, last_step=last, status=None if status is None else StepStatus(status),
            num_rows=num_rows, num_tokens=num_tokens, evidence=(counts[0], counts[1], counts[2]), matched=(counts[3],
            counts[4], counts[5]), has_gap=bool(gap),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class FileSummary:
    """What the steps of a segment file add up to: enough to count and to plan without its acknowledgement records."""

    step_ranges: tuple[StepSpan, ...]

    @property
    def num_rows(self) -> int:
        """Rows of all steps."""
        return sum(span.num_steps * span.num_rows for span in self.step_ranges)

    @property
    def num_tokens(self) -> int:
        """Tokens of all steps."""
        return sum(span.num_steps * span.num_tokens for span in self.step_ranges)

    @property
    def num_steps(self) -> int:
        """Steps."""
        return sum(span.num_steps for span in self.step_ranges)

    @property
    def num_gaps(self) -> int:
        """Steps with a gap."""
        return sum(span.num_steps for span in self.step_ranges if span.has_gap)

    @property
    def first_step(self) -> int | None:
        """The first step; None where there is none."""
        return self.step_ranges[0].first_step if self.step_ranges else None

    @property
    def last_step(self) -> int | None:
        """The last step; None where there is none."""
        return self.step_ranges[-1].last_step if self.step_ranges else None


def summary_of(acks: AckTable, run: RunInfo) -> FileSummary:
    """What acknowledgement records add up to."""
    places = acks.indices_of(AckKind.STEP)
    if not len(places):
        return FileSummary(step_ranges=())
    return FileSummary(step_ranges=tuple(_spans(acks, places, run)))


def _spans(acks: AckTable, places: npt.NDArray[np.int64], run: RunInfo) -> Iterator[StepSpan]:
    records, new = acks.records[places], acks.format_version >= 3
    columns = [records["status"].astype(np.int64), records["num_rows"].astype(np.int64), acks.num_tokens(run)[places]]
    if new:
        columns += [records[name][:, index].astype(np.int64) for name in ("evidence", "matched") for index in range(3)]
        columns.append((records["flags"] & 1).astype(np.int64))
    table, steps = np.stack(columns, axis=1), records["global_step"]
    differs = (table[1:] != table[:-1]).any(axis=1) | (steps[1:] != steps[:-1] + 1)
    firsts = np.concatenate([[0], np.flatnonzero(differs) + 1])
    lasts = np.concatenate([firsts[1:] - 1, [len(steps) - 1]])
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        status, num_rows, num_tokens, *counts = table[first].tolist()
        yield StepSpan(
            first_step=int(steps[first]), last_step=int(steps[last]), status=status_of_code(status), num_rows=num_rows,
            num_tokens=num_tokens, evidence=tuple(counts[0:3]) if new else (0, 0, 0),
            matched=tuple(counts[3:6]) if new else (0, 0, 0), has_gap=bool(counts[6]) if new else None,
        )  # fmt: skip


class SummaryBuilder:
    """Makes the summary of a file while it grows, of one acknowledged step after the other."""

    def __init__(self, run: RunInfo) -> None:
        self._run = run
        self._spans: list[StepSpan] = []

    def add(self, ack: Ack) -> None:
        """Count one acknowledged step."""
        span = StepSpan(
            first_step=ack.global_step, last_step=ack.global_step, status=ack.status, num_rows=ack.num_rows,
            num_tokens=ack.tokens_in(self._run), evidence=ack.evidence, matched=ack.matched, has_gap=ack.has_gap,
        )  # fmt: skip
        before = self._spans[-1] if self._spans else None
        if before is not None and before.last_step + 1 == span.first_step:
            longer = dataclasses.replace(before, last_step=span.last_step)
            if dataclasses.replace(span, first_step=before.first_step) == longer:
                self._spans[-1] = longer
                return
        self._spans.append(span)

    def summary(self) -> FileSummary:
        """What was counted."""
        return FileSummary(step_ranges=tuple(self._spans))


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedFile:
    """Name, size and hash of one file that a seal covers."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Seal:
    """One seal. `last`: no file of this writer follows. `reason`: rolled, closed, or repaired.

    Rolled and closed files end with an end record, and anybody who seals them makes the same seal; repaired ones may
    have none. `previous_seal_sha256`: the newest seal before it that is not of a repaired file, since writers know no
    others. Seals of formats 1 and 2 do not have the last five keys.
    """

    run_id: str
    attempt: int
    attempt_sha256: str
    dp_rank: int
    file_number: int
    last: bool
    reason: str
    data: SealedFile
    acks: SealedFile
    num_rows: int
    num_tokens: int
    num_steps: int
    first_step: int | None
    last_step: int | None
    previous_seal_sha256: str | None
    num_gaps: int | None = None
    last_committed_step: int | None = None
    last_record_sha256: str | None = None
    last_unix_time_us: int | None = None
    step_ranges: tuple[StepSpan, ...] | None = None

    @property
    def summary(self) -> FileSummary | None:
        """What the file's steps add up to; None where the format does not say."""
        return None if self.step_ranges is None else FileSummary(step_ranges=self.step_ranges)

    def encode(self) -> bytes:
        """The seal file's bytes, in the format that it has."""
        document = {name: getattr(self, name) for name in self.__slots__}
        document.update({name: dataclasses.asdict(document[name]) for name in ("data", "acks")})
        if self.step_ranges is None:
            kept = {name: value for name, value in document.items() if name not in _SINCE_3}
            return encode_document({"format": OLD_SEAL_FORMAT, **kept})
        document["step_ranges"] = [span.to_list() for span in self.step_ranges]
        return encode_document({"format": SEAL_FORMAT, **document}, flat=True)

    @property
    def sha256(self) -> str:
        """What the next seal of this writer names."""
        return hashlib.sha256(self.encode()).hexdigest()


def new_seal(
    attempt: AttemptInfo,
    name: SegmentFileName,
    data: SealedFile,
    acks: SealedFile,
    summary: FileSummary,
    last_ack: Ack,
    *,
    last_committed_step: int | None,
    last: bool,
    reason: str,
    previous_seal_sha256: str | None,
) -> Seal:
    """The seal of a file, in the format of its attempt. last_committed_step: of the writer, up to the end of the file."""
    new = attempt.format_version >= 3
    return Seal(
        run_id=attempt.run_id,
        attempt=attempt.attempt,
        attempt_sha256=info_sha256(attempt),
        dp_rank=name.dp_rank,
        file_number=name.number,
        last=last,
        reason=reason,
        data=data,
        acks=acks,
        num_rows=summary.num_rows,
        num_tokens=summary.num_tokens,
        num_steps=summary.num_steps,
        first_step=summary.first_step,
        last_step=summary.last_step,
        previous_seal_sha256=previous_seal_sha256,
        num_gaps=summary.num_gaps if new else None,
        last_committed_step=last_committed_step if new else None,
        last_record_sha256=last_ack.sha256.hex() if new else None,
        last_unix_time_us=last_ack.unix_time_us if new else None,
        step_ranges=summary.step_ranges if new else None,
    )


def read_seal(path: Path, data: bytes) -> Seal:
    """The seal in `data`, its own hash checked first. Raises DamageError, also where its summary contradicts its counts."""
    document: dict[str, Any] = decode_document(path, data)
    found = document.pop("format", None)
    if found not in (SEAL_FORMAT, OLD_SEAL_FORMAT):
        raise DamageError(f'{path}: expected "format": "{SEAL_FORMAT}", found {found!r}; a newer kiseki may read it')
    document.pop("sha256")
    try:
        data_part, acks_part = (SealedFile(**document.pop(name)) for name in ("data", "acks"))
        if found == SEAL_FORMAT:
            document["step_ranges"] = tuple(map(StepSpan.from_list, document["step_ranges"]))
        seal = Seal(**document, data=data_part, acks=acks_part)
    except (TypeError, KeyError, ValueError) as error:
        raise DamageError(f"{path} has other keys than a seal: {error}; a newer kiseki may read it") from error
    summary = seal.summary
    if summary is not None and _counts(summary) != _counts(seal):
        raise DamageError(f"{path}: its step_ranges add up to {_counts(summary)}, its counts are {_counts(seal)}")
    return seal


def _counts(of: Seal | FileSummary) -> tuple[int | None, ...]:
    return of.num_rows, of.num_tokens, of.num_steps, of.num_gaps, of.first_step, of.last_step


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
