"""The state of an export at a glance: from the acknowledgement records alone, without reading the rows."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from train_hooks.export_format.acknowledgement import Ack
from train_hooks.export_format.chain import SegmentFile, WriterLog
from train_hooks.export_format.lineage import StepInterval, canonical_attempt, lineage
from train_hooks.export_format.origin import Origin, origin_of
from train_hooks.export_format.reader import AttemptReader, RunReader
from train_hooks.export_format.repair import ran_here, writer_locks

__all__ = ["AttemptStatus", "RunStatus", "status"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptStatus:
    """One attempt. Steps, rows and tokens are those of committed steps.

    state: closed (every writer ended by itself), live (a writer's lock is held), crashed (on this host, no lock is held),
    or open (on another host, or without locks: it may be either). lag_steps: steps that some writers have acknowledged
    and others not yet. newest_unix_s: when the newest record was written.
    """

    attempt: int
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


def status(run: RunReader, *, now_unix_s: float | None = None) -> RunStatus:
    """What is there now. Raises DamageError where the records of an attempt do not hold together."""
    now = time.time() if now_unix_s is None else now_unix_s
    readers = run.attempts()
    logs = {reader.info.attempt: reader.writers() for reader in readers}
    committed = {reader.info.attempt: reader.committed_steps(logs[reader.info.attempt]) for reader in readers}
    last_steps = {attempt: steps[-1] if steps else None for attempt, steps in committed.items()}
    canonical = canonical_attempt(last_steps)
    intervals = [] if canonical is None else lineage([reader.info for reader in readers], canonical)
    found = tuple(
        _attempt_status(reader, logs[reader.info.attempt], committed[reader.info.attempt], intervals)
        for reader in readers
    )
    newest = [item.newest_unix_s for item in found if item.state in ("live", "open") and item.newest_unix_s is not None]
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
    )


def _attempt_status(
    reader: AttemptReader, logs: dict[int, WriterLog], committed: list[int], intervals: list[StepInterval]
) -> AttemptStatus:
    info = reader.info
    counted = set(committed)
    steps = [(file, ack) for log in logs.values() for file, ack in log.steps() if ack.global_step in counted]
    num_rows = sum(ack.num_rows for _, ack in steps)
    num_tokens = sum(ack.tokens_in(reader.run.info) for _, ack in steps)
    everywhere = {ack.global_step for log in logs.values() for _, ack in log.steps()}
    files = [file for log in logs.values() for file in log.files]
    newest = max((file.acks[-1].unix_time_us for file in files if file.acks), default=None)
    on_lineage = [step for step in committed if any(interval.holds(info.attempt, step) for interval in intervals)]
    return AttemptStatus(
        attempt=info.attempt,
        parent_attempt=info.parent_attempt,
        resume_step=info.resume_step,
        state=_state(reader, logs),
        num_writers=info.num_writers,
        num_writers_seen=len(logs),
        num_steps=len(committed),
        num_superseded=len(committed) - len(on_lineage),
        last_step=committed[-1] if committed else None,
        num_rows=num_rows,
        num_tokens=num_tokens,
        num_gaps=sum(_is_gap(reader, file, ack) for file, ack in steps if not ack.num_rows),
        num_files=len(files),
        num_unsealed=sum(not file.sealed for file in files),
        lag_steps=len(everywhere - counted),
        newest_unix_s=None if newest is None else newest / 1e6,
    )


def _is_gap(reader: AttemptReader, file: SegmentFile, ack: Ack) -> bool:
    return any(record.kind == "gap" for record in reader.frame(file, ack).records)


def _state(reader: AttemptReader, logs: Mapping[int, WriterLog]) -> str:
    if len(logs) == reader.info.num_writers and all(log.closed for log in logs.values()):
        return "closed"
    try:
        for log in logs.values():
            with writer_locks(reader, log) as free:
                if not free:
                    return "live"
    except OSError:
        return "open"
    return "crashed" if ran_here(reader) else "open"
