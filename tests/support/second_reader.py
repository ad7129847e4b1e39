"""Two readers of one run: ours, and the one that somebody else wrote from the document alone. They must agree.

What is compared is what a reader hands out: every believed row with all of its values, step records, committed and
final steps, and the canonical lineage. Where one of them refuses a run, the other must refuse it too. Ours reads
without checking what only `verify` checks (leaves, record commitments, summaries), so it may also say it there.
"""

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.independent_reader import ReadAttempt, ReadRun, Refused, read_run
from train_hooks.export_format.errors import KisekiError
from train_hooks.export_format.lineage import canonical_attempt, lineage
from train_hooks.export_format.reading.reader import AttemptReader, RunReader
from train_hooks.export_format.records import AttemptInfo, Row, RowLoss, Segment, StepRecord, TensorRecord
from train_hooks.export_format.removal import removal_of
from train_hooks.export_format.tensors import as_current_tensor, decode_tensor
from train_hooks.export_format.verify.findings import Severity
from train_hooks.export_format.verify.run import verify

__all__ = ["AttemptContent", "Content", "assert_readers_agree", "our_content", "their_content"]

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AttemptContent:
    """What a reader hands out of an attempt: rows by their addresses, and (dp_rank, step record)."""

    committed_steps: tuple[int, ...]
    final_step: int | None
    rows: Mapping[str, Values]
    records: tuple[tuple[int, Values], ...]


@dataclass(frozen=True, slots=True)
class Content:
    """What a reader hands out of a run. canonical: attempt and number of each step."""

    attempts: Mapping[int, AttemptContent]
    canonical: tuple[tuple[int, int], ...]


def assert_readers_agree(run_dir: Path) -> int:
    """Read a run with both readers; AssertionError says in what they differ. Gives the number of rows compared."""
    ours, theirs = _content_or_refusal(our_content, run_dir), _content_or_refusal(their_content, run_dir)
    if isinstance(ours, Content) and isinstance(theirs, Content):
        _compare(ours, theirs)
        return sum(len(attempt.rows) for attempt in ours.attempts.values())
    assert not isinstance(theirs, Content), f"ours refuses the run and the second reader does not: {ours}"
    if isinstance(ours, Content):
        report = verify(run_dir)
        found = report.of(Severity.DAMAGED) or report.of(Severity.INCOMPLETE)
        assert found, f"the second reader refuses the run, and ours reads and verifies it: {theirs}"
    return 0


def _content_or_refusal(read: Callable[[Path], Content], run_dir: Path) -> Content | Exception:
    try:
        return read(run_dir)
    except (KisekiError, Refused) as error:
        return error


def _compare(ours: Content, theirs: Content) -> None:
    assert ours.attempts.keys() == theirs.attempts.keys(), f"{[*ours.attempts]} and {[*theirs.attempts]}"
    for number, our in ours.attempts.items():
        their = theirs.attempts[number]
        for name in ("committed_steps", "final_step"):
            _expect_equal(f"attempt {number}, {name}", getattr(our, name), getattr(their, name))
        _expect_equal(f"attempt {number}, addresses", [*our.rows], [*their.rows])
        for address, row in our.rows.items():
            _expect_same_values(address, row, their.rows[address])
        _expect_equal(f"attempt {number}, number of step records", len(our.records), len(their.records))
        for (rank, record), (their_rank, their_record) in zip(our.records, their.records, strict=True):
            _expect_equal(f"attempt {number}, dp_rank of a step record", rank, their_rank)
            _expect_same_values(f"attempt {number}, a step record of dp_rank {rank}", record, their_record)
    _expect_equal("the canonical lineage", ours.canonical, theirs.canonical)


def _expect_same_values(what: str, ours: Values, theirs: Values) -> None:
    assert ours.keys() == theirs.keys(), f"{what}: {[*ours]} and {[*theirs]}"
    for name, value in ours.items():
        _expect_equal(f"{what}, {name}", value, theirs[name])


def _expect_equal(what: str, ours: object, theirs: object) -> None:
    assert ours == theirs, f"{what}: ours reads {ours!r}, the second reader {theirs!r}"


def their_content(run_dir: Path) -> Content:
    """What the second reader hands out. Raises Refused."""
    run: ReadRun = read_run(run_dir)
    return Content({attempt.number: _their_attempt(attempt) for attempt in run.attempts}, run.canonical)


def _their_attempt(attempt: ReadAttempt) -> AttemptContent:
    rows = {}
    for address, row in sorted(attempt.rows.items()):
        segments = [(*_plain(part), _bits(part.loss)) for part in row.segments]
        tensors = [(item.name, item.dtype, item.whole, item.evidence, item.shape, item.raw) for item in row.tensors]
        rows[address] = {
            "tokens": row.tokens, "segments": segments, "tensors": tensors, "sample_index": row.sample_index,
            "status": row.status, "loss": _bits(row.loss), "evidence": row.evidence, "matched": row.matched,
            "relation": row.relation, "leaf": row.leaf, "removed": row.removed,
        }  # fmt: skip
    records = tuple((rank, _their_record(record)) for rank, record in attempt.records)
    return AttemptContent(attempt.committed_steps, attempt.final_step, rows, records)


def _their_record(record: Mapping[str, Any]) -> Values:
    rows = [
        (microbatch, slot, _bits(loss), None if parts is None else [_bits(part) for part in parts])
        for microbatch, slot, loss, parts in record.get("rows", ())
    ]
    values = {name: _number(value) for name, value in record["values"].items()}
    return {**{name: record[name] for name in ("global_step", "kind", "unix_time_s", "text")}, "values": values,
            "rows": rows}  # fmt: skip


def our_content(run: RunReader | Path) -> Content:
    """What our reader hands out. Raises KisekiError."""
    run = run if isinstance(run, RunReader) else RunReader(run)
    attempts = run.attempts()
    found = {attempt.info.attempt: _our_attempt(attempt) for attempt in attempts}
    committed = {number: content.committed_steps for number, content in found.items()}
    canonical = canonical_attempt({number: max(steps, default=None) for number, steps in committed.items()})
    intervals = [] if canonical is None else lineage([attempt.info for attempt in attempts], canonical)
    steps = [
        (each.attempt, step) for each in intervals for step in committed[each.attempt] if each.holds(each.attempt, step)
    ]
    return Content(found, tuple(steps))


def _our_attempt(attempt: AttemptReader) -> AttemptContent:
    writers = attempt.writers()
    rows = {str(row.address): row for log in writers.values() for file, acks in log.steps_between(1, 1 << 60)
            for frame in attempt.frames_of(file, acks) for row in attempt.rows(frame)}  # fmt: skip
    late: dict[str, list[RowLoss]] = {}
    for place, loss in attempt.late_losses(writers):
        late.setdefault(str(place), []).append(loss)
    return AttemptContent(
        committed_steps=tuple(attempt.committed_steps(writers)),
        final_step=attempt.final_step(writers),
        rows={address: _our_row(attempt.info, row, late.get(address, ())) for address, row in sorted(rows.items())},
        records=tuple((rank, _our_record(record)) for rank, record in attempt.step_records(writers)),
    )


def _our_row(attempt: AttemptInfo, row: Row, late: Sequence[RowLoss]) -> Values:
    removal = removal_of(row)
    losses = [part.loss for part in row.segments]
    loss = row.loss
    for each in late:
        loss = loss if each.loss is None else each.loss
        fits = each.segments is not None and len(each.segments) == len(losses)  # else the second reader refuses it
        losses = list(each.segments or ()) if fits else losses
    return {
        "tokens": tuple(row.tokens.tolist()),
        "segments": [(*_plain(part), _bits(own)) for part, own in zip(row.segments, losses, strict=True)],
        "tensors": [] if removal else [_our_tensor(attempt, row, record) for record in row.tensors],
        "sample_index": row.sample_index,
        "status": row.status.value,
        "loss": _bits(loss),
        "evidence": _word(row.evidence or attempt.default_evidence),
        "matched": _word(row.matched or attempt.default_matched),
        "relation": row.relation,
        "leaf": row.leaf,
        "removed": removal.ranges if removal else (),
    }


def _our_tensor(attempt: AttemptInfo, row: Row, record: TensorRecord) -> tuple[object, ...]:
    record = as_current_tensor(record, attempt.format_version)
    raw = decode_tensor(record, row.tokens, row.segments).tobytes()
    evidence = _word(record.evidence or attempt.default_tensor_evidence)
    return record.name, record.dtype, record.whole, evidence, record.shape, raw


def _our_record(record: StepRecord) -> Values:
    rows = [
        (row.microbatch, row.slot, _bits(row.loss), None if row.segments is None else [*map(_bits, row.segments)])
        for row in record.rows
    ]
    values = {name: _number(value) for name, value in record.values.items()}
    return {"global_step": record.global_step, "kind": record.kind, "unix_time_s": record.unix_time_s,
            "text": record.text, "values": values, "rows": rows}  # fmt: skip


def _plain(part: Any) -> tuple[object, ...]:
    """A segment of either reader without its loss."""
    found: Segment = part
    return found.start, found.length, found.source, found.document_id, found.document_token_offset


def _word(value: object) -> str | None:
    return None if value is None else str(value)


def _number(value: float | str) -> float | str:
    """A number that is equal to itself."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _bits(loss: float | str | None) -> bytes | None:
    """A loss as the four bytes that are stored."""
    return None if loss is None else struct.pack("<f", float(loss))
