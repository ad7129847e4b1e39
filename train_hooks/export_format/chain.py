"""The chain of one writer's segment files: which acknowledgement records are to be believed.

Records are believed as far as they form one chain from the first file on. A file whose first record names an earlier
place than the end of the file before was begun because a write there failed: what lies beyond that place does not count,
since the later file holds it again. Pure functions over bytes; nothing here raises for what a crash leaves behind.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from train_hooks.export_format.acknowledgement import ACK_SIZE, Ack, AckKind, decode_acks, file_identity
from train_hooks.export_format.compacted import CompactedFiles
from train_hooks.export_format.paths import SegmentFileName
from train_hooks.export_format.records import AttemptInfo

__all__ = ["SegmentFile", "WriterLog", "add_file"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentFile:
    """One segment file and the acknowledgement records of it that are to be believed.

    torn: why its records end before the bytes of the `.acks` file do. compacted: where its rows went, if they did.
    """

    name: SegmentFileName
    data_path: Path
    acks_path: Path
    sealed: bool
    acks: Sequence[Ack]
    torn: str | None
    acks_size_bytes: int = 0
    compacted: CompactedFiles | None = None

    @property
    def ended(self) -> Ack | None:
        """The end record, where the writer got to write one."""
        return self.acks[-1] if self.acks and self.acks[-1].kind is AckKind.END else None

    @property
    def believed_size_bytes(self) -> int:
        """How many bytes of the data are acknowledged."""
        return self.acks[-1].end if self.acks else 0

    @property
    def damage(self) -> str | None:
        """What is wrong with its records that no crash explains."""
        if self.sealed and (self.torn or self.acks_size_bytes != ACK_SIZE * len(self.acks) or not self.acks):
            return self.torn or "its acknowledgement records do not fit those of the writer's other files"
        kinds = [ack.kind for ack in self.acks]
        if kinds and (kinds[0] is not AckKind.SCHEMA or AckKind.SCHEMA in kinds[1:] or AckKind.END in kinds[:-1]):
            return "its acknowledgement records stand in an impossible order"
        return None


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


def add_file(info: AttemptInfo, files: list[SegmentFile], file: SegmentFile, raw_acks: bytes) -> None:
    """Append `file` with the records of `raw_acks` that continue the chain of `files`, which is cut where they say so."""
    acks, torn, place = _continue(info, files, file.name, raw_acks)
    if acks:
        _cut(files, *place)
    files.append(dataclasses.replace(file, acks=acks, torn=torn, acks_size_bytes=len(raw_acks)))


def _continue(
    info: AttemptInfo, files: Sequence[SegmentFile], name: SegmentFileName, raw: bytes
) -> tuple[Sequence[Ack], str | None, tuple[int, int]]:
    """(records, torn, place that they follow: number of the file and how many of its records)."""
    if not raw:
        return (), None, (-1, 0)
    reason: str | None = None
    for place, previous in _places(files):
        identity = file_identity(info.run_id, info.attempt, info.claim, name.dp_rank, name.number, previous)
        acks, torn = decode_acks(raw, identity)
        if acks:
            return acks, torn, place
        reason = reason or torn
        if torn is not None and "cut or damaged" in torn:
            break
    return (), reason, (-1, 0)


def _places(files: Sequence[SegmentFile]) -> Iterator[tuple[tuple[int, int], bytes | None]]:
    """Where a file may continue the chain, the likeliest first: after each record, newest first, and at its beginning."""
    for index in range(len(files) - 1, -1, -1):
        for num_acks in range(len(files[index].acks), 0, -1):
            yield (index, num_acks), files[index].acks[num_acks - 1].sha256
    yield (-1, 0), None


def _cut(files: list[SegmentFile], index: int, num_acks: int) -> None:
    for later in range(index + 1, len(files)):
        files[later] = dataclasses.replace(files[later], acks=())
    if index >= 0 and num_acks < len(files[index].acks):
        files[index] = dataclasses.replace(files[index], acks=files[index].acks[:num_acks])
