"""The names of every file and directory of a run; no other module knows them.

RUN/export/run.json                                  written once
RUN/export/run_secret.hex                            all salts derive from it; it is never published
RUN/export/tokenizer/<file>                          a copy of the tokenizer
RUN/export/attempts/a000002/attempt.json             the claim of attempt 2
RUN/export/attempts/a000002/barrier-000000120.json   steps up to 120 are durable on every writer
RUN/export/attempts/a000002/rows-r00003-00000.arrows segment file 0 of dp_rank 3 (`.inprogress` until sealed)
RUN/export/attempts/a000002/rows-r00003-00000.acks   its acknowledgement records
RUN/export/attempts/a000002/rows-r00003-00000.seal.json
RUN/export/attempts/a000002/rows-r00003-00000-00007.compacted.json   files 0 to 7 of dp_rank 3, compacted:
RUN/export/attempts/a000002/rows-r00003-00000-00007.rows.parquet     their rows
RUN/export/attempts/a000002/rows-r00003-00000-00007.frames.parquet   their frames and step records
RUN/export/attempts/a000002/rows-r00003-00000-00007-v1.….           the same, rewritten when tokens were taken out
RUN/export-<random>.inprogress/                      a run whose creation died; nothing relies on it
RUN/import.inprogress/                               an import that died, or goes on; nothing relies on it
RUN/index/…                                          disposable; `kiseki index` makes it again
"""

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["IN_PROGRESS", "REPAIRED", "CompactionName", "ExportPaths", "SegmentFileName"]

IN_PROGRESS = ".inprogress"
REPAIRED = ".repaired"
_STEM = re.compile(r"rows-r(\d{5,9})-(\d{5,9})\.(arrows|acks|seal\.json)(\.inprogress)?", re.ASCII)
_COMPACTION = re.compile(
    r"rows-r(\d{5,9})-(\d{5,9})-(\d{5,9})(?:-v([1-9]\d{0,8}))?\.(compacted\.json|rows\.parquet|frames\.parquet)(\.inprogress)?",
    re.ASCII,
)
_BARRIER = re.compile(r"barrier-(\d{9,15})\.json(\.inprogress)?", re.ASCII)
_ATTEMPT = re.compile(r"a(\d{6,9})", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class SegmentFileName:
    """Which segment file: the number counts the files of one dp_rank in one attempt, from 0."""

    dp_rank: int
    number: int

    @property
    def stem(self) -> str:
        return f"rows-r{self.dp_rank:05d}-{self.number:05d}"

    @property
    def data(self) -> str:
        return f"{self.stem}.arrows"

    @property
    def acks(self) -> str:
        return f"{self.stem}.acks"

    @property
    def seal(self) -> str:
        return f"{self.stem}.seal.json"

    @classmethod
    def parse(cls, name: str) -> "tuple[SegmentFileName, str, bool] | None":
        """(segment file, part, in progress) of a file name, or None where it is not one of ours."""
        match = _STEM.fullmatch(name)
        if match is None:
            return None
        parsed = cls(dp_rank=int(match[1]), number=int(match[2]))
        if not name.startswith(f"{parsed.stem}."):  # r000003 and r00003 must not both be rank 3
            return None
        return parsed, match[3], match[4] is not None


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class CompactionName:
    """Which segment files of a dp_rank were compacted together; both numbers included.

    version counts how often tokens were taken out of it: the highest is in force.
    """

    dp_rank: int
    first_number: int
    last_number: int
    version: int = 0

    @property
    def stem(self) -> str:
        version = f"-v{self.version}" if self.version else ""
        return f"rows-r{self.dp_rank:05d}-{self.first_number:05d}-{self.last_number:05d}{version}"

    def files(self) -> list[SegmentFileName]:
        """The segment files that it replaces."""
        return [
            SegmentFileName(dp_rank=self.dp_rank, number=number)
            for number in range(self.first_number, self.last_number + 1)
        ]

    def covers(self, file: SegmentFileName) -> bool:
        """Whether it replaces this one."""
        return file.dp_rank == self.dp_rank and self.first_number <= file.number <= self.last_number

    @property
    def manifest(self) -> str:
        return f"{self.stem}.compacted.json"

    @property
    def rows(self) -> str:
        return f"{self.stem}.rows.parquet"

    @property
    def frames(self) -> str:
        return f"{self.stem}.frames.parquet"

    @classmethod
    def parse(cls, name: str) -> "tuple[CompactionName, str, bool] | None":
        """(compaction, part, in progress) of a file name, or None where it is not one of ours."""
        match = _COMPACTION.fullmatch(name)
        if match is None:
            return None
        parsed = cls(
            dp_rank=int(match[1]), first_number=int(match[2]), last_number=int(match[3]), version=int(match[4] or 0)
        )
        if not name.startswith(f"{parsed.stem}."):
            return None
        return parsed, match[5], match[6] is not None


@dataclass(frozen=True, slots=True)
class ExportPaths:
    """Paths below one run directory."""

    run_dir: Path

    @property
    def export(self) -> Path:
        return self.run_dir / "export"

    @property
    def run_json(self) -> Path:
        return self.export / "run.json"

    @property
    def secret(self) -> Path:
        return self.export / "run_secret.hex"

    @property
    def tokenizer_dir(self) -> Path:
        return self.export / "tokenizer"

    @property
    def attempts(self) -> Path:
        return self.export / "attempts"

    @property
    def unfinished_import(self) -> Path:
        """Where an export that no training writes is made."""
        return self.run_dir / f"import{IN_PROGRESS}"

    def unfinished_export(self, random: str) -> Path:
        """Where a run is made before it appears whole under its name."""
        return self.run_dir / f"export-{random}{IN_PROGRESS}"

    def attempt_dir(self, attempt: int) -> Path:
        return self.attempts / f"a{attempt:06d}"

    def attempt_json(self, attempt: int) -> Path:
        return self.attempt_dir(attempt) / "attempt.json"

    def barrier_json(self, attempt: int, global_step: int) -> Path:
        return self.attempt_dir(attempt) / f"barrier-{global_step:09d}.json"

    @staticmethod
    def barrier_step(name: str) -> int | None:
        """Step of a barrier record's file, finished or not, or None where the name is not one."""
        match = _BARRIER.fullmatch(name)
        return int(match[1]) if match and name.startswith(f"barrier-{int(match[1]):09d}.") else None

    @staticmethod
    def attempt_number(name: str) -> int | None:
        """Number of an attempt's directory, or None where the name is not one."""
        match = _ATTEMPT.fullmatch(name)
        return int(match[1]) if match and name == f"a{int(match[1]):06d}" else None
