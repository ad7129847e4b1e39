"""Writing an export that was recomputed: one attempt from step 1 on, every row given by a function of step and rank."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.importers.frames import write_frames
from indexer.importers.new_export import new_export
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Row, RunInfo, Segment, StepStatus
from train_hooks.export_format.tensors import encode_tensor
from train_hooks.export_format.writing.attempts import RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.frames import Frame, FrameMaker

__all__ = ["Recomputed", "RecomputedRow", "write_recomputed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecomputedRow:
    """One sequence. where: file and place of its tokens [sequence_length], for errors; tensors: name → value of the row."""

    where: str
    microbatch: int
    slot: int
    sample_index: int
    tokens: npt.NDArray[np.integer]
    segments: tuple[Segment, ...]
    tensors: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recomputed:
    """What was written. num_without_documents: sequences of which nothing says what documents are in them."""

    run_id: str
    num_steps: int
    num_rows: int
    num_tokens: int
    num_without_documents: int


def write_recomputed(
    run_dir: Path,
    spec: RunSpec,
    rows_of: Callable[[int, int], Iterable[RecomputedRow]],
    *,
    num_ranks: int,
    num_steps: int,
    progress: Callable[[int, int], None] | None = None,
) -> Recomputed:
    """Write steps 1 to `num_steps` of each rank; rows_of: (step, rank) → rows, by micro-batch and slot.

    Raises RunError where `run_dir` holds an export, InputError for a token beyond the vocabulary; then nothing is
    left behind.
    """
    with new_export(run_dir) as made:
        run = open_or_create_run(OsFileSystem(), made, spec)
        attempt = claim_attempt(OsFileSystem(), made, run, num_writers=num_ranks, resume=None, config={})
        secret = RunReader(made).secret()
        num_rows = num_without_documents = 0

        def counted(frames: Iterable[Frame], rank: int) -> Iterator[Frame]:
            nonlocal num_rows, num_without_documents
            for frame in frames:
                num_rows += len(frame.rows)
                num_without_documents += sum(not any(part.document_id for part in row.segments) for row in frame.rows)
                yield frame
                if progress is not None:
                    progress(rank * num_steps + frame.global_step, num_ranks * num_steps)

        for rank in range(num_ranks):
            frames = _frames(run, FrameMaker(attempt, rank, secret), rank, num_steps, rows_of)
            write_frames(made, run, attempt, rank, counted(frames, rank))
    return Recomputed(
        run_id=run.run_id,
        num_steps=num_steps,
        num_rows=num_rows,
        num_tokens=num_rows * run.sequence_length,
        num_without_documents=num_without_documents,
    )


def _frames(
    run: RunInfo, make: FrameMaker, rank: int, num_steps: int, rows_of: Callable[[int, int], Iterable[RecomputedRow]]
) -> Iterator[Frame]:
    for step in range(1, num_steps + 1):
        rows = [_row(run, make, step, row) for row in rows_of(step, rank)]
        yield make.frame(AckKind.STEP, step, StepStatus.APPLIED, rows)


def _row(run: RunInfo, make: FrameMaker, step: int, row: RecomputedRow) -> Row:
    if int(row.tokens.max(initial=0)) >= run.vocab_size or int(row.tokens.min(initial=0)) < 0:
        found = int(row.tokens.max(initial=0))
        raise InputError(
            f"{row.where}: expected token ids below {run.vocab_size}, found {found}; is it the right vocabulary?"
        )
    tokens = row.tokens.astype(run.token_dtype)
    tensors = tuple(encode_tensor(name, value, tokens, row.segments) for name, value in sorted(row.tensors.items()))
    return make.row(
        make.address(step, row.microbatch, row.slot), tokens, row.segments, tensors, sample_index=row.sample_index,
        status=StepStatus.APPLIED,
    )  # fmt: skip
