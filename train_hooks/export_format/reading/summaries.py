"""What an attempt adds up to, from the summaries in its seals: sealed files of format 3 are counted without their
records.

Open files, and those of older formats, have no summary: their acknowledgement records are read.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from train_hooks.export_format.acknowledgement import AckTable, Counts, decode_acks, file_identity
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.paths import CompactionName, SegmentFileName
from train_hooks.export_format.reading.chain import WriterLog
from train_hooks.export_format.reading.reader import AttemptReader, expect_writers
from train_hooks.export_format.records import AttemptInfo
from train_hooks.export_format.seals import Seal, StepSpan, summary_of

__all__ = ["AttemptSummary", "EvidenceShares", "WriterSummary", "summarize"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceShares:
    """How many rows are known in which way. What is left of `num_rows` is not recorded."""

    num_rows: int = 0
    forward: int = 0
    loader: int = 0
    declared: int = 0
    whole: int = 0
    slice: int = 0
    count: int = 0

    def plus(self, num_rows: int, evidence: Counts, matched: Counts, times: int = 1) -> "EvidenceShares":
        """With so many more rows, so many times."""
        before = (self.forward, self.loader, self.declared, self.whole, self.slice, self.count)
        after = [have + more * times for have, more in zip(before, (*evidence, *matched), strict=True)]
        return EvidenceShares(
            num_rows=self.num_rows + num_rows * times, forward=after[0], loader=after[1], declared=after[2],
            whole=after[3], slice=after[4], count=after[5],
        )  # fmt: skip

    def combined_with(self, other: "EvidenceShares") -> "EvidenceShares":
        """Both together."""
        return self.plus(
            other.num_rows, (other.forward, other.loader, other.declared), (other.whole, other.slice, other.count)
        )

    def sentence(self) -> str:
        """In words: `evidence: forward 100%; matched: whole 98.0%, count 2.0%`."""
        if not self.num_rows:
            return "no rows"
        known = self._words({"forward": self.forward, "loader": self.loader, "declared": self.declared})
        tied = self._words({"whole": self.whole, "slice": self.slice, "count": self.count})
        return f"evidence: {known}; matched: {tied}"

    def _words(self, counts: Mapping[str, int]) -> str:
        found = {**counts, "not recorded": self.num_rows - sum(counts.values())}
        return ", ".join(f"{name} {_percent(number, self.num_rows)}" for name, number in found.items() if number)


def _percent(number: int, total: int) -> str:
    share = 100 * number / total
    if number == total:
        return "100%"
    return f"{min(max(share, 0.1), 99.9):.1f}%"


@dataclass(frozen=True, kw_only=True, slots=True)
class WriterSummary:
    """One dp_rank's files. closed: its writer ended by itself. newest_unix_s: when its newest record was written."""

    dp_rank: int
    spans: tuple[StepSpan, ...]
    num_files: int
    num_unsealed: int
    closed: bool
    newest_unix_s: float | None

    @property
    def last_step(self) -> int | None:
        """The newest acknowledged step."""
        return self.spans[-1].last_step if self.spans else None


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptSummary:
    """All writers of an attempt."""

    attempt: AttemptInfo
    writers: Mapping[int, WriterSummary]

    @property
    def committed(self) -> range:
        """The steps that every writer has acknowledged."""
        first = self.attempt.resume_step + 1
        if len(self.writers) < self.attempt.num_writers:
            return range(first, first)
        last = min((writer.last_step or self.attempt.resume_step for writer in self.writers.values()), default=0)
        return range(first, max(first, last + 1))

    @property
    def newest_step(self) -> int:
        """The newest step that any writer has acknowledged; the resume step where none has."""
        return max((writer.last_step or 0 for writer in self.writers.values()), default=0) or self.attempt.resume_step

    def committed_spans(self) -> Iterator[StepSpan]:
        """The spans of all writers, cut to committed steps."""
        committed = self.committed
        for writer in self.writers.values():
            for span in writer.spans:
                last = min(span.last_step, committed.stop - 1)
                if span.first_step <= last:
                    yield dataclasses.replace(span, last_step=last)


def summarize(attempt: AttemptReader) -> AttemptSummary:
    """What an attempt adds up to. Raises DamageError where files are missing, or steps do not follow one another."""
    entries = attempt.run.file_system.names(attempt.directory)
    names = sorted({parsed[0] for entry in entries if (parsed := SegmentFileName.parse(entry)) is not None})
    there = set(entries)
    expect_writers(attempt.info, (name.dp_rank for name in names))
    found: dict[int, WriterSummary] = {}
    for dp_rank in sorted({name.dp_rank for name in names}):
        own = [name for name in names if name.dp_rank == dp_rank]
        for number, name in enumerate(own):
            if name.number != number:
                raise DamageError(f"{attempt.directory}: segment file {number} of dp_rank {dp_rank} is missing")
        summary = _from_seals(attempt, own, there)
        if summary is None:
            summary = _from_log(attempt, attempt.writers(dp_rank)[dp_rank])
        _expect_in_order(attempt, summary)
        found[dp_rank] = summary
    return AttemptSummary(attempt=attempt.info, writers=found)


def _expect_in_order(attempt: AttemptReader, writer: WriterSummary) -> None:
    expected = attempt.info.resume_step + 1
    for span in writer.spans:
        if span.first_step != expected:
            raise DamageError(
                f"{attempt.directory}: expected step {expected} of dp_rank {writer.dp_rank}, found {span.first_step}; "
                "run `kiseki export verify` and restore what is lost from a copy"
            )
        expected = span.last_step + 1


def _from_log(attempt: AttemptReader, log: WriterLog) -> WriterSummary:
    times = [int(file.acks.records["unix_time_us"][-1]) for file in log.files if len(file.acks)]
    return WriterSummary(
        dp_rank=log.dp_rank,
        spans=tuple(span for summary in log.summaries(attempt.run.info) for span in summary.step_ranges),
        num_files=len(log.files),
        num_unsealed=sum(not file.sealed for file in log.files),
        closed=log.closed,
        newest_unix_s=max(times) / 1e6 if times else None,
    )


def _from_seals(attempt: AttemptReader, names: Sequence[SegmentFileName], there: set[str]) -> WriterSummary | None:
    """Sealed files by their summaries, the one open file behind them by its records. None where that is not enough."""
    seals: list[Seal] = []
    compactions = [
        parsed[0] for entry in there if (parsed := CompactionName.parse(entry)) and entry == parsed[0].manifest
    ]
    for name in names:
        seal = attempt.seal(name, there)
        if seal is None:
            break
        place = (attempt.info.run_id, attempt.info.attempt, name.dp_rank, name.number)
        if name.acks not in there or not (name.data in there or any(other.covers(name) for other in compactions)):
            raise DamageError(
                f"{attempt.directory / name.seal} is there, and {name.acks} or {name.data} is not; restore it from a copy"
            )
        if seal.step_ranges is None or (seal.run_id, seal.attempt, seal.dp_rank, seal.file_number) != place:
            return None
        seals.append(seal)
    spans = [span for seal in seals for span in seal.step_ranges or ()]
    times = [seal.last_unix_time_us or 0 for seal in seals]
    rest = names[len(seals) :]
    if rest and seals and seals[-1].last:
        raise DamageError(
            f"{attempt.directory / names[len(seals) - 1].seal} says that no file follows, and {rest[0].acks} does; run "
            "`kiseki export verify`"
        )
    if len(rest) > 1:
        return None
    closed = bool(seals) and seals[-1].reason == "closed" and not rest
    if rest:
        attempt.expect_seal(rest[0], there)
        acks = _open_records(attempt, rest[0], there, seals[-1].last_record_sha256 if seals else None)
        if acks is None:
            return None
        spans += summary_of(acks, attempt.run.info).step_ranges
        if len(acks):
            times.append(int(acks.records["unix_time_us"][-1]))
            ended = acks[-1]
            closed = ended.kind.name == "END" and ended.global_step == 1
    return WriterSummary(
        dp_rank=names[0].dp_rank,
        spans=tuple(spans),
        num_files=len(names),
        num_unsealed=len(rest),
        closed=closed,
        newest_unix_s=max(times) / 1e6 if times else None,
    )


def _open_records(
    attempt: AttemptReader, name: SegmentFileName, there: set[str], previous_hex: str | None
) -> AckTable | None:
    """The records of an open file that follow a writer's sealed ones; None where they follow something else."""
    _, data = attempt.read_acks(name, there)
    info = attempt.info
    previous = None if previous_hex is None else bytes.fromhex(previous_hex)
    identity = file_identity(info.run_id, info.attempt, info.claim, name.dp_rank, name.number, previous)
    acks, _ = decode_acks(data, identity, info.format_version)
    return acks if len(acks) or not data else None
