"""The state of an export at a glance: from the summaries in its seals and the records of its open files, without its
rows."""

import time
from dataclasses import dataclass

from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.lineage import StepInterval, canonical_attempt, lineage
from train_hooks.export_format.origin import Origin, origin_of
from train_hooks.export_format.reading.reader import AttemptReader, RunReader
from train_hooks.export_format.reading.summaries import AttemptSummary, EvidenceShares, summarize
from train_hooks.export_format.upkeep.repair import ran_here, writer_locks

__all__ = ["AttemptStatus", "RunStatus", "status"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptStatus:
    """One attempt. Steps, rows and tokens are those of committed steps.

    state: closed (every writer ended by itself), live (a writer's lock is held), crashed (on this host, no lock is
    held), or open (on another host, or without locks: it may be either). lag_steps: steps that some writers have
    acknowledged and others not yet. newest_unix_s: when the newest record was written. barrier_step: the newest step
    that a barrier record covers: a model checkpoint up to it can be traced. shares: how the rows of committed steps
    are known.
    """

    attempt: int
    format_version: int
    parent_attempt: int | None
    resume_step: int
    state: str
    num_writers: int
    num_writers_seen: int
    num_steps: int
    num_superseded: int
    last_step: int | None
    num_rows: int
    num_tokens: int
    num_gaps: int
    num_files: int
    num_unsealed: int
    lag_steps: int
    newest_unix_s: float | None
    barrier_step: int | None
    shares: EvidenceShares


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """A run. `lag_s`: seconds since the newest record of a live or open attempt, else None."""

    run_id: str
    origin: Origin
    canonical_attempt: int | None
    newest_committed_step: int | None
    attempts: tuple[AttemptStatus, ...]
    num_rows: int
    num_tokens: int
    num_gaps: int
    num_unsealed: int
    lag_s: float | None
    shares: EvidenceShares


def status(run: RunReader, *, now_unix_s: float | None = None) -> RunStatus:
    """What is there now. Raises DamageError where the records of an attempt do not hold together."""
    now = time.time() if now_unix_s is None else now_unix_s
    readers = run.attempts()
    barriers = [reader.barrier_step() for reader in readers]  # before the records, which by then hold what they cover
    summaries = [summarize(reader) for reader in readers]
    last_steps = {of.attempt.attempt: of.committed[-1] if of.committed else None for of in summaries}
    canonical = canonical_attempt(last_steps)
    intervals = [] if canonical is None else lineage([reader.info for reader in readers], canonical)
    found = tuple(
        _attempt_status(reader, summary, barrier, intervals)
        for reader, summary, barrier in zip(readers, summaries, barriers, strict=True)
    )
    newest = [item.newest_unix_s for item in found if item.state in ("live", "open") and item.newest_unix_s is not None]
    shares = EvidenceShares()
    for item in found:
        shares = shares.combined_with(item.shares)
    return RunStatus(
        run_id=run.info.run_id,
        origin=origin_of(run.info),
        canonical_attempt=canonical,
        newest_committed_step=None if canonical is None else last_steps[canonical],
        attempts=found,
        num_rows=sum(item.num_rows for item in found),
        num_tokens=sum(item.num_tokens for item in found),
        num_gaps=sum(item.num_gaps for item in found),
        num_unsealed=sum(item.num_unsealed for item in found),
        lag_s=now - max(newest) if newest else None,
        shares=shares,
    )


def _attempt_status(
    reader: AttemptReader, summary: AttemptSummary, barrier: int | None, intervals: list[StepInterval]
) -> AttemptStatus:
    info, committed, writers = reader.info, summary.committed, summary.writers.values()
    newest = committed[-1] if committed else info.resume_step
    if barrier is not None and barrier > max(newest, info.resume_step):
        raise DamageError(
            f"{reader.directory}: a barrier record covers step {barrier}, and not every writer has its steps up to {newest}; "
            "run `kiseki export verify` and restore what is lost"
        )
    shares, num_tokens, num_gaps = EvidenceShares(), 0, 0
    for span in summary.committed_spans():
        shares = shares.plus(span.num_rows, span.evidence, span.matched, span.num_steps)
        num_tokens += span.num_steps * span.num_tokens
        num_gaps += span.num_steps * bool(span.has_gap)
    if info.format_version < 3:
        num_gaps = _old_gaps(reader, committed)
    times = [writer.newest_unix_s for writer in writers if writer.newest_unix_s is not None]
    return AttemptStatus(
        attempt=info.attempt,
        format_version=info.format_version,
        parent_attempt=info.parent_attempt,
        resume_step=info.resume_step,
        state=_state(reader, summary),
        num_writers=info.num_writers,
        num_writers_seen=len(writers),
        num_steps=len(committed),
        num_superseded=len(committed) - sum(_overlap(committed, interval, info.attempt) for interval in intervals),
        last_step=committed[-1] if committed else None,
        num_rows=shares.num_rows,
        num_tokens=num_tokens,
        num_gaps=num_gaps,
        num_files=sum(writer.num_files for writer in writers),
        num_unsealed=sum(writer.num_unsealed for writer in writers),
        lag_steps=max(0, summary.newest_step - (committed[-1] if committed else info.resume_step)),
        newest_unix_s=max(times, default=None),
        barrier_step=barrier,
        shares=shares,
    )


def _overlap(committed: range, interval: StepInterval, attempt: int) -> int:
    """How many committed steps of an attempt an interval holds."""
    if interval.attempt != attempt:
        return 0
    last = committed.stop if interval.last_step is None else min(committed.stop, interval.last_step + 1)
    return max(0, last - max(committed.start, interval.first_step))


def _old_gaps(reader: AttemptReader, committed: range) -> int:
    """Gaps in formats 1 and 2, whose records do not say: of steps without rows the frames are read."""
    found = 0
    for log in reader.writers().values():
        for file in log.files:
            empty = [
                ack
                for ack in file.acks
                if ack.kind is AckKind.STEP and not ack.num_rows and ack.global_step in committed
            ]
            frames = reader.frames_of(file, empty)
            found += sum(any(record.kind == "gap" for record in frame.records) for frame in frames)
    return found


def _state(reader: AttemptReader, summary: AttemptSummary) -> str:
    writers, closed = summary.writers, 0
    if len(writers) == reader.info.num_writers and all(writer.closed for writer in writers.values()):
        return "closed"
    try:
        for writer in writers.values():
            if not writer.num_unsealed:
                closed += writer.closed
                continue
            for log in reader.writer_logs(writer.dp_rank).values():  # again: it may have ended since
                with writer_locks(reader, log) as free:
                    if not free:
                        return "live"
                closed += log.closed
    except OSError:
        return "open"
    if closed == reader.info.num_writers:
        return "closed"
    return "crashed" if ran_here(reader) else "open"
