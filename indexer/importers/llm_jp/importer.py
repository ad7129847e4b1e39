"""An LLM-jp dump becomes an export of its own, marked as imported: what the dump says, not what the hook saw.

1. A first pass (`scan_dump`) finds the iterations of each rank and where the training went back; a second one writes.
2. A rank of the dump is a data-parallel rank. A fall of the iteration begins a new attempt, which resumes before it.
3. Every step has a frame on every rank. What the dump lacks (iterations before its first, between two, lines that
   could not be read) is a gap with its reason, so `kiseki export verify` says of such an export that it is
   incomplete.
4. Memory holds the lines of two groups of rows (`importers.frames`).
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.corpora.files import Problems
from indexer.importers.frames import grouped, write_frames
from indexer.importers.llm_jp.dump import MAX_MISSING, DumpStep, list_dump, steps_of
from indexer.importers.llm_jp.rows import row_of
from indexer.importers.llm_jp.scan import DumpScan, scan_dump
from indexer.importers.new_export import check_end_of_document, new_export, require_no_export, vocab_size_of
from indexer.tokenizer.tokenizer import RunTokenizer
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.origin import Origin, OriginKind
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import AttemptInfo, RunInfo, StepRecord, StepStatus
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.frames import Frame, FrameMaker

__all__ = ["ImportedDump", "import_dump"]

WHAT = "an LLM-jp dump (used_data_{fold}/used_data_{rank}.jsonl.gz)"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportedDump:
    """What became of a dump. attempts: (first, last) step of each. problems: the first of num_problems bad lines."""

    run_id: str
    num_files: int
    num_ranks: int
    num_rows: int
    num_tokens: int
    num_gap_steps: int
    attempts: tuple[tuple[int, int], ...]
    problems: tuple[str, ...]
    num_problems: int


def import_dump(
    dump: Path,
    run_dir: Path,
    *,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    eos: int | None = None,
    step_offset: int = 0,
    run_id: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportedDump:
    """Import a dump into a run directory that holds no run.

    tokenizer: the tokenizer.json that made the tokens, copied into the export; vocab_size: where there is none, or to
    say more. eos: the token that ends documents. step_offset: added to every iteration. progress: (bytes, bytes in
    all), both passes. Raises InputError for a dump that cannot be one, RunError where the run directory holds a run.
    """
    ranks = list_dump(dump)
    vocab_size = vocab_size_of(tokenizer, vocab_size)
    check_end_of_document(eos, vocab_size)
    total, done = 2 * sum(file.size_bytes for files in ranks.values() for file in files), 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress is not None:
            progress(done, max(done, total))

    require_no_export(run_dir)
    scan = scan_dump(ranks, advance)
    first = scan.attempts[0][0] + step_offset
    if min(begin for begin, _ in scan.attempts) + step_offset < 1:
        raise InputError(
            f"expected steps from 1 on, found iteration {first - step_offset}; give --step-offset {1 - first}"
        )
    if first - 1 > MAX_MISSING:
        raise InputError(
            f"expected steps from 1 to {MAX_MISSING:,} first, since each before is a gap, found {first}; --step-offset "
            f"{step_offset + 1 - first} makes it step 1"
        )
    spec = RunSpec(
        sequence_length=scan.sequence_length,
        vocab_size=vocab_size,
        run_id=run_id,
        tokenizer=tokenizer,
        config=_origin(scan, step_offset, eos).to_config(),
    )
    problems = Problems()
    with new_export(run_dir) as made:
        run = open_or_create_run(OsFileSystem(), made, spec)
        importing = _Import(run, made, scan, eos=eos, step_offset=step_offset, problems=problems)
        return importing.run({rank: steps_of(files, problems, advance) for rank, files in ranks.items()})


def _origin(scan: DumpScan, step_offset: int, eos: int | None) -> Origin:
    details = {"step_offset": step_offset, "eos": eos, "files": [asdict(file) for file in scan.files]}
    return Origin(kind=OriginKind.IMPORTED, what=WHAT, details=details)


class _Import:
    def __init__(
        self, run: RunInfo, run_dir: Path, scan: DumpScan, *, eos: int | None, step_offset: int, problems: Problems
    ) -> None:
        self._run, self._run_dir, self._scan, self._eos = run, run_dir, scan, eos
        self._offset, self._problems = step_offset, problems
        self._reader = RunReader(run_dir)
        self._secret = self._reader.secret()
        self._tokenizer = None if run.tokenizer_file is None else RunTokenizer(self._reader)
        self._num_rows = self._num_gap_steps = 0

    def run(self, streams: dict[int, Iterator[DumpStep]]) -> ImportedDump:
        num_attempts = len(self._scan.attempts)
        grouped = {rank: groupby(stream, key=lambda step: step.attempt) for rank, stream in streams.items()}
        waiting = {rank: next(groups, None) for rank, groups in grouped.items()}
        for index in range(num_attempts):
            first, last = (number + self._offset for number in self._scan.attempts[index])
            if index + 1 < num_attempts:  # the step that the next attempt resumes from must be there
                last = max(last, self._scan.attempts[index + 1][0] + self._offset - 1)
            attempt = self._claim(index, first, len(streams))
            for rank in streams:
                group = waiting[rank]
                steps = iter(()) if group is None or group[0] != index else group[1]
                numbered = self._numbered(steps, attempt.resume_step + 1, last)
                frames = self._frames(FrameMaker(attempt, rank, self._secret), numbered)
                write_frames(self._run_dir, self._run, attempt, rank, frames)
                waiting[rank] = next(grouped[rank], None)
        return self._result(len(streams))

    def _claim(self, index: int, first: int, num_writers: int) -> AttemptInfo:
        resume = None
        if index:
            resume = ResumeToken(run_id=self._run.run_id, attempt=index, global_step=first - 1)
        return claim_attempt(
            OsFileSystem(), self._run_dir, self._run, num_writers=num_writers, resume=resume, config={}
        )

    def _numbered(self, steps: Iterator[DumpStep], first: int, last: int) -> Iterator[tuple[int, DumpStep | None]]:
        """Every step from `first` to `last`; None for those that the dump has not."""
        expected = first
        for step in steps:
            number = step.iteration + self._offset
            yield from ((missing, None) for missing in range(expected, number))
            yield number, step
            expected = number + 1
        yield from ((missing, None) for missing in range(expected, last + 1))

    def _frames(self, make: FrameMaker, steps: Iterator[tuple[int, DumpStep | None]]) -> Iterator[Frame]:
        """The frames of numbered steps, whose rows are decoded many at a time. A line that the run cannot hold is a bad one."""
        for group in grouped(steps, lambda numbered: 0 if numbered[1] is None else len(numbered[1].rows)):
            for _, step in group:
                if step is not None:
                    self._drop_what_does_not_fit(step)
            texts = self._decoded([row.tokens for _, step in group if step is not None for row in step.rows])
            yield from (self._frame(make, number, step, texts) for number, step in group)

    def _frame(self, make: FrameMaker, number: int, step: DumpStep | None, texts: Iterator[str | None]) -> Frame:
        rows = []
        for slot, row in enumerate(() if step is None else step.rows):
            decoded, dtype = next(texts), self._run.token_dtype
            rows.append(row_of(make, row, make.address(number, 0, slot), dtype=dtype, eos=self._eos, decoded=decoded))
        gaps = tuple(_gap(number, *gap) for gap in _gaps(step))
        self._num_rows += len(rows)
        self._num_gap_steps += bool(gaps)
        return make.frame(AckKind.STEP, number, StepStatus.APPLIED, rows, gaps)

    def _drop_what_does_not_fit(self, step: DumpStep) -> None:
        length, highest = self._run.sequence_length, self._run.vocab_size - 1
        for row in step.rows:
            if len(row.tokens) != length:
                step.bad.append(
                    f"{row.place}: expected {length} token_ids, as the first line has, found {len(row.tokens)}"
                )
            elif int(row.tokens.max()) > highest:
                step.bad.append(f"{row.place}: expected token ids up to {highest}, found {int(row.tokens.max())}")
            else:
                continue
            self._problems.add(step.bad[-1])
        step.rows[:] = [row for row in step.rows if len(row.tokens) == length and int(row.tokens.max()) <= highest]

    def _decoded(self, many: list[npt.NDArray[np.int64]]) -> Iterator[str | None]:
        return iter([None] * len(many)) if self._tokenizer is None else iter(self._tokenizer.decode_many(many))

    def _result(self, num_ranks: int) -> ImportedDump:
        return ImportedDump(
            run_id=self._run.run_id,
            num_files=len(self._scan.files),
            num_ranks=num_ranks,
            num_rows=self._num_rows,
            num_tokens=self._num_rows * self._run.sequence_length,
            num_gap_steps=self._num_gap_steps,
            attempts=tuple((first + self._offset, last + self._offset) for first, last in self._scan.attempts),
            problems=tuple(self._problems.first),
            num_problems=self._problems.number,
        )


def _gaps(step: DumpStep | None) -> list[tuple[str, int]]:
    """(why, rows) of what is missing in a step."""
    if step is None:
        return [("the dump has no line of this iteration on this rank", 0)]
    return [(f"a line could not be read: {bad}", 1) for bad in step.bad]


def _gap(number: int, why: str, num_rows: int) -> StepRecord:
    return StepRecord(global_step=number, kind="gap", unix_time_s=time.time(), values={"num_rows": num_rows}, text=why)
