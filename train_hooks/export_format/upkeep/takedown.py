"""Taking tokens out of an export for good: documents, rows and spans, wherever sealed files hold them.

1. The whole export is looked through, superseded steps and every attempt too. Nothing changes before all of it is
   found.
2. Rows in files that are not sealed cannot be changed: IncompleteError says which. A takedown hides them meanwhile.
3. What is touched is written anew by `compact.rewrite`, a compaction at a time. Killed anywhere and run again, it
   goes on.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.errors import IncompleteError
from train_hooks.export_format.reading.chain import SegmentFile
from train_hooks.export_format.reading.reader import AttemptReader, RunReader, StepFrame
from train_hooks.export_format.records import Row, SequenceAddress
from train_hooks.export_format.removal import removal_of, without_tokens
from train_hooks.export_format.tensors import as_current_tensor
from train_hooks.export_format.upkeep.compact import batch_without_ranges, remove_leftovers, rewrite, upkeep_lock

__all__ = ["Takedown", "TakenOut", "take_out"]

Progress = Callable[[int, int], None]
Ranges = dict[int, list[tuple[int, int]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Takedown:
    """What is to go: documents (source, document_id), whole rows, and (row, start, end) in tokens of the row."""

    documents: frozenset[tuple[str, str]] = frozenset()
    rows: frozenset[SequenceAddress] = frozenset()
    spans: frozenset[tuple[SequenceAddress, int, int]] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class TakenOut:
    """What a takedown did: tokens that rows have lost now, the files that held them, and all rows and ranges that it names."""

    num_tokens: int
    num_files: int
    rows: Mapping[SequenceAddress, Sequence[tuple[int, int]]]


def take_out(run: RunReader, what: Takedown, *, dry_run: bool = False, progress: Progress | None = None) -> TakenOut:
    """Take tokens out of the export; `progress` is told (files looked through, files in all).

    Raises IncompleteError where a file that holds some is not sealed, DamageError where the export does not hold
    together; nothing was changed then.
    """
    with upkeep_lock(run):
        return _take_out(run, what, dry_run=dry_run, progress=progress)


def _take_out(run: RunReader, what: Takedown, *, dry_run: bool, progress: Progress | None) -> TakenOut:
    files = [(attempt, file) for attempt in run.attempts() for log in attempt.writers().values() for file in log.files]
    finder = _Finder(what)
    touched: list[tuple[AttemptReader, SegmentFile]] = []
    num_tokens = 0
    named: dict[SequenceAddress, Sequence[tuple[int, int]]] = {}
    for done, (attempt, file) in enumerate(files, 1):
        for frame in _frames(attempt, file):
            found = finder.ranges(attempt, frame)
            if not found:
                continue
            rows = attempt.rows(frame)
            named |= {rows[index].address: ranges for index, ranges in found.items() if ranges}
            num_tokens += sum(_tokens_to_lose(run, rows[index], ranges) for index, ranges in found.items())
            changes = any(without_tokens(run.secret(), rows[index], found[index]) is not rows[index] for index in found)
            if changes and (attempt, file) not in touched:
                touched.append((attempt, file))
        if progress is not None:
            progress(done, len(files))
    report = TakenOut(num_tokens=num_tokens, num_files=len(touched), rows=named)
    if dry_run:
        return report
    _expect_sealed([file for _, file in touched])
    for attempt, group in _groups(touched):
        rewrite(attempt, group, functools.partial(_without, attempt, finder))
    for attempt in run.attempts():
        remove_leftovers(attempt)
    return report


def _without(attempt: AttemptReader, finder: "_Finder", frame: StepFrame) -> pa.RecordBatch:
    return batch_without_ranges(attempt, frame, finder.ranges(attempt, frame))


class _Finder:
    """The token ranges of a frame's rows that a takedown names."""

    def __init__(self, what: Takedown) -> None:
        self._what = what
        self._ids = pa.array(sorted({document_id for _, document_id in what.documents}), pa.string())
        self._spans: dict[SequenceAddress, list[tuple[int, int]]] = {}
        for address, start, end in what.spans:
            self._spans.setdefault(address, []).append((start, end))
        rows = [*what.rows, *self._spans]
        self._places = {(row.attempt, row.global_step, row.dp_rank) for row in rows}

    def ranges(self, attempt: AttemptReader, frame: StepFrame) -> Ranges:
        """By number of the row in the frame; rows that it does not name are left out."""
        place = (attempt.info.attempt, frame.ack.global_step, frame.dp_rank)
        if not frame.batch.num_rows or not (place in self._places or self._has_document(frame.batch)):
            return {}
        rows = attempt.rows(frame)
        of_rows = {index: self._of_row(row) for index, row in enumerate(rows)}
        found = {index: ranges for index, ranges in of_rows.items() if ranges}
        touched = {rows[index].address.microbatch for index in found}
        for index, row in enumerate(rows):  # a tensor of the whole micro-batch repeats the tokens of every slot
            if row.address.microbatch in touched and any(
                as_current_tensor(tensor, row.format_version).whole for tensor in row.tensors
            ):
                found.setdefault(index, [])
        return found

    def _has_document(self, batch: pa.RecordBatch) -> bool:
        if not len(self._ids):
            return False
        ids = pc.struct_field(pc.list_flatten(batch.column("segments")), "document_id")
        return bool(pc.any(pc.is_in(ids, value_set=self._ids)).as_py())

    def _of_row(self, row: Row) -> list[tuple[int, int]]:
        if row.address in self._what.rows:
            return [(0, len(row.tokens))]
        found = [
            (segment.start, segment.start + segment.length)
            for segment in row.segments
            if (segment.source, segment.document_id) in self._what.documents
        ]
        found += [
            (min(start, len(row.tokens)), min(end, len(row.tokens))) for start, end in self._spans.get(row.address, ())
        ]
        return [(start, end) for start, end in found if start < end]


def _frames(attempt: AttemptReader, file: SegmentFile) -> Iterator[StepFrame]:
    return attempt.frames_of(file, [ack for ack in file.acks if ack.kind is AckKind.STEP and ack.num_rows])


def _tokens_to_lose(run: RunReader, row: Row, ranges: Sequence[tuple[int, int]]) -> int:
    return _num_lost(without_tokens(run.secret(), row, ranges)) - _num_lost(row)


def _num_lost(row: Row) -> int:
    removal = removal_of(row)
    return 0 if removal is None else sum(end - start for start, end in removal.ranges)


def _expect_sealed(files: Sequence[SegmentFile]) -> None:
    still_open = [file.data_path for file in files if not file.sealed]
    if still_open:
        raise IncompleteError(
            f"{still_open[0]} ({len(still_open)} such files) holds some of the tokens and is not sealed: wait until the "
            "training has sealed it, or run `kiseki export repair` where its writer died; nothing was changed"
        )


def _groups(touched: Sequence[tuple[AttemptReader, SegmentFile]]) -> Iterator[tuple[AttemptReader, list[SegmentFile]]]:
    """The files that are written anew together: all of a compaction of which one is touched, or one that is in none."""
    written = set()
    for attempt, file in touched:
        if file.compacted is None:
            yield attempt, [file]
        elif file.compacted.path not in written:
            written.add(file.compacted.path)
            names = set(file.compacted.names())
            yield attempt, [each for each in attempt.writers()[file.name.dp_rank].files if each.name in names]
