"""Small exports for tests, written by the real code."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.filesystem import FileSystem, OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import AttemptInfo, RunInfo, Segment, StepRecord, StepStatus
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.committed_step import CommittedStep
from train_hooks.hook.export.row_builder import RowBuilder
from train_hooks.hook.export.staging import StagedMicrobatch

__all__ = ["LENGTH", "VOCABULARY", "begin_attempt", "begin_run", "committed_step", "write_export", "write_steps"]

LENGTH, VOCABULARY = 16, 300


def begin_run(
    run_dir: Path,
    *,
    tokenizer: Path | None = None,
    file_system: FileSystem | None = None,
    shorter_rows: bool = False,
) -> RunInfo:
    """A run of sequences of 16 tokens, or at most that."""
    spec = RunSpec(
        sequence_length=LENGTH, vocab_size=VOCABULARY, run_id="example", tokenizer=tokenizer, config={"lr": 0.1},
        shorter_rows=shorter_rows,
    )  # fmt: skip
    return open_or_create_run(file_system or OsFileSystem(), run_dir, spec)


def begin_attempt(
    run_dir: Path, run: RunInfo, *, num_writers: int = 1, resume: ResumeToken | None = None
) -> AttemptInfo:
    """A claimed attempt."""
    return claim_attempt(OsFileSystem(), run_dir, run, num_writers=num_writers, resume=resume, config={})


def committed_step(
    step: int,
    dp_rank: int,
    *,
    num_slots: int = 2,
    status: StepStatus = StepStatus.APPLIED,
    shorter_rows: bool = False,
) -> CommittedStep:
    """A step of two micro-batches whose content is a function of its place; shorter_rows: of 1, 3, 5 … 16 tokens, too."""
    rng = np.random.default_rng([step, dp_rank])
    lengths = [min(LENGTH, 4 * step - 3 + 2 * index) if shorter_rows else LENGTH for index in range(2)]
    microbatches = tuple(
        StagedMicrobatch(
            tokens=rng.integers(0, VOCABULARY, (num_slots, lengths[index])),
            tensors={"loss_mask": rng.random((num_slots, lengths[index]), np.float32)},
            segments=[
                tuple(
                    Segment(
                        start=start, length=end - start, source=source, document_id=name, document_token_offset=offset
                    )
                    for start, end, source, name, offset in (
                        (0, min(6, lengths[index]), "web", f"d{step}-{slot}", 0),
                        (6, lengths[index], "本", "é", 40),
                    )
                    if start < end
                )
                for slot in range(num_slots)
            ],
            sample_index=[step * 1000 + index * 100 + slot for slot in range(num_slots)],
            loss=[0.5] * num_slots,
        )
        for index in range(2)
    )
    metrics = StepRecord(global_step=step, kind="metrics", unix_time_s=1.5, values={"loss": 1.0 / step})
    return CommittedStep(
        kind=AckKind.STEP, global_step=step, status=status, microbatches=microbatches, records=(metrics,), size_bytes=0
    )


def write_steps(
    run_dir: Path,
    run: RunInfo,
    attempt: AttemptInfo,
    steps: Sequence[int],
    *,
    roll_size_bytes: int = 1 << 30,
    close: bool = True,
) -> None:
    """All writers of an attempt write `steps`, one append each."""
    secret = RunReader(run_dir).secret()
    for dp_rank in range(attempt.num_writers):
        directory = ExportPaths(run_dir).attempt_dir(attempt.attempt)
        writer = RankWriter(OsFileSystem(), directory, run, attempt, dp_rank, roll_size_bytes=roll_size_bytes)
        builder = RowBuilder(run, attempt, dp_rank, secret)
        for step in steps:
            writer.append([builder.frame(committed_step(step, dp_rank, shorter_rows=run.shorter_rows))])
        if close:
            writer.close()
        else:
            writer.abandon()


def write_export(
    run_dir: Path, *, close: bool = True, tokenizer: bool = False, shorter_rows: bool = False
) -> RunReader:
    """Attempt 1 with steps 1–5 and files that roll; attempt 2 resumes from step 3 and has steps 4–6; two writers each."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir.with_name("tokenizer.json")
    if tokenizer:
        path.write_text('{"model": "none"}')
    run = begin_run(run_dir, tokenizer=path if tokenizer else None, shorter_rows=shorter_rows)
    first = begin_attempt(run_dir, run, num_writers=2)
    write_steps(run_dir, run, first, range(1, 6), roll_size_bytes=6000 if not shorter_rows else 5000)
    token = ResumeToken(run_id=run.run_id, attempt=1, global_step=3)
    second = begin_attempt(run_dir, run, num_writers=2, resume=token)
    write_steps(run_dir, run, second, range(4, 7), close=close)
    return RunReader(run_dir)
