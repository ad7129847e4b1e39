"""The chain of one writer's segment files: which acknowledgement records are to be believed.

Records are believed as far as they form one chain from the first file on. A file whose first record names an earlier
place than the end of the file before was begun because a write there failed: what lies beyond that place does not
count, since the later file holds it again. Pure functions over bytes; nothing here raises for what a crash leaves
behind.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.acknowledgement import (
    Ack,
    AckKind,
    AckTable,
    ack_size,
    decode_acks,
    decode_sealed_acks,
    file_identity,
)
from train_hooks.export_format.paths import SegmentFileName
from train_hooks.export_format.reading.compacted import CompactedFiles
from train_hooks.export_format.records import AttemptInfo, RunInfo
from train_hooks.export_format.seals import FileSummary, Seal, summary_of

__all__ = ["SegmentFile", "WriterLog", "add_file"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentFile:
    """One segment file and the acknowledgement records of it that are to be believed.

    torn: why its records end before the bytes of the `.acks` file do. compacted: where its rows went, if they did.
    seal: what seals it, where that was read.
    """

    name: SegmentFileName
    data_path: Path
    acks_path: Path
    sealed: bool
    acks: AckTable
    torn: str | None
    acks_size_bytes: int = 0
    compacted: CompactedFiles | None = None
    seal: Seal | None = None

    @property
    def ended(self) -> Ack | None:
        """The end record, where the writer got to write one."""
        return self.acks[-1] if len(self.acks) and self.acks.records["kind"][-1] == AckKind.END else None

    @property
    def believed_size_bytes(self) -> int:
        """How many bytes of the data are acknowledged."""
        return self.acks.size_bytes

    @property
    def believed_acks_bytes(self) -> int:
        """How many bytes of the acknowledgement records are believed."""
        return len(self.acks) * ack_size(self.acks.format_version)

    @property
    def damage(self) -> str | None:
        """What is wrong with its records that no crash explains."""
        if self.sealed and (self.torn or self.acks_size_bytes != self.believed_acks_bytes or not len(self.acks)):
            return self.torn or "its acknowledgement records do not fit those of the writer's other files"
        kinds = self.acks.records["kind"]
        if len(kinds) and (
            kinds[0] != AckKind.SCHEMA or (kinds[1:] == AckKind.SCHEMA).any() or (kinds[:-1] == AckKind.END).any()
        ):
            return "its acknowledgement records stand in an impossible order"
        return None

    def contradiction(self, run: RunInfo) -> str | None:
        """In what its seal's summary differs from its records; None where it does not, or there is none."""
        claimed = None if self.seal is None else self.seal.summary
        if claimed is None:
            return None
        found = summary_of(self.acks, run)
        if found == claimed:
            return None
        pairs = zip(found.step_ranges, claimed.step_ranges, strict=False)
        first = next((ours.first_step for ours, theirs in pairs if ours != theirs), None)
        return "the summary in its seal contradicts its acknowledgement records" + (
            "" if first is None else f", from step {first} on"
        )


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

    def steps_between(self, first_step: int, last_step: int) -> Iterator[tuple[SegmentFile, Sequence[Ack]]]:
        """The acknowledged steps in [first_step, last_step], file by file; other records are not decoded."""
        for file in self.files:
            records = file.acks.records
            steps = records["global_step"]
            wanted = (records["kind"] == AckKind.STEP) & (first_step <= steps) & (steps <= last_step)
            places = np.flatnonzero(wanted)
            if len(places):
                yield file, [file.acks[int(place)] for place in places]

    @property
    def step_numbers(self) -> npt.NDArray[np.int64]:
        """The number of every acknowledged step, in the order of the chain."""
        found = [file.acks.records["global_step"][file.acks.indices_of(AckKind.STEP)] for file in self.files]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    @property
    def last_step(self) -> int | None:
        """The newest acknowledged step."""
        return int(self.step_numbers.max()) if len(self.step_numbers) else None

    @property
    def closed(self) -> bool:
        """Whether the writer ended by itself."""
        ended = self.files[-1].ended if self.files else None
        return ended is not None and ended.global_step == 1

    def summaries(self, run: RunInfo) -> list[FileSummary]:
        """What each file's steps add up to."""
        return [summary_of(file.acks, run) for file in self.files]


def add_file(info: AttemptInfo, files: list[SegmentFile], file: SegmentFile, raw_acks: bytes) -> None:
    """Append `file` with the records of `raw_acks` that continue the chain of `files`, which is cut where they say so."""
    acks, torn, position = _follow_chain(info, files, file, raw_acks)
    if len(acks):
        _cut_chain(files, *position)
    files.append(dataclasses.replace(file, acks=acks, torn=torn, acks_size_bytes=len(raw_acks)))


def _follow_chain(
    info: AttemptInfo, files: Sequence[SegmentFile], file: SegmentFile, raw: bytes
) -> tuple[AckTable, str | None, tuple[int, int]]:
    """(records, torn, position that they follow: number of the file and how many of its records)."""
    nothing = AckTable.empty(info.format_version)
    if not raw:
        return nothing, None, (-1, 0)
    reason: str | None = None
    sealed = _sealed(file, raw, info.format_version)
    for position, previous in _possible_predecessors(files):
        identity = file_identity(info.run_id, info.attempt, info.claim, file.name.dp_rank, file.name.number, previous)
        if sealed is not None:
            if sealed.records["previous"][0].tobytes() == identity:
                return sealed, None, position
            reason = "acknowledgement record 0 does not follow the one before it"
            continue
        acks, torn = decode_acks(raw, identity, info.format_version)
        if len(acks):
            return acks, torn, position
        reason = reason or torn
        if torn is not None and "cut or damaged" in torn:
            break
    return nothing, reason, (-1, 0)


def _sealed(file: SegmentFile, raw: bytes, format_version: int) -> AckTable | None:
    """All records, where the file's seal vouches for their bytes, so that they need not be followed one by one."""
    if file.seal is None or hashlib.sha256(raw).hexdigest() != file.seal.acks.sha256:
        return None
    return decode_sealed_acks(raw, format_version)


def _possible_predecessors(files: Sequence[SegmentFile]) -> Iterator[tuple[tuple[int, int], bytes | None]]:
    """Where a file may continue the chain, the likeliest first: after each record, newest first, and at its beginning."""
    for index in range(len(files) - 1, -1, -1):
        for num_acks in range(len(files[index].acks), 0, -1):
            yield (index, num_acks), files[index].acks.sha256(num_acks - 1)
    yield (-1, 0), None


def _cut_chain(files: list[SegmentFile], index: int, num_acks: int) -> None:
    for later in range(index + 1, len(files)):
        files[later] = dataclasses.replace(files[later], acks=files[later].acks.first(0))
    if index >= 0 and num_acks < len(files[index].acks):
        files[index] = dataclasses.replace(files[index], acks=files[index].acks.first(num_acks))
