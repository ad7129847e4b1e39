"""What `ExportHook.attach` does before the training begins: all ranks agree, one claims the attempt, the writers start.

1. The ranks check that they were given the same run. (`ranks_agree`)
2. They elect one writer for each data-parallel rank. (`elect`)
3. Rank 0 opens or creates the run and claims an attempt; the others get what it found.
4. Each writer rank opens its first segment file and starts its writer thread.

Every part is collective: it succeeds on all ranks, or raises on all of them.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from train_hooks.documents import DocumentResolver
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import AttemptInfo, Evidence, EvidenceDefaults, Matched, RunInfo
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.collectives import on_every_rank, on_first_rank, ranks_agree
from train_hooks.hook.election import elect, mesh_of
from train_hooks.hook.export.exporter import Exporter, ExporterOptions
from train_hooks.hook.same_rows import FirstRows
from train_hooks.hook.tensors.kernels import kernels
from train_hooks.hook.tokenizer_check import check_tokenizer
from train_hooks.hook.writer_rank import WriterRank

__all__ = ["JoinedRun", "join_run"]

_SEEN_BY_FORWARD = EvidenceDefaults(evidence=Evidence.FORWARD, tensor_evidence=Evidence.FORWARD, matched=Matched.WHOLE)
"""The evidence of rows and tensors that a forward was seen to get. Rows of which this is not true say so themselves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedRun:
    """This process's place in a run. exporter: None where it is no writer. first_rows: digests of what it exports first."""

    run_dir: Path
    run: RunInfo
    attempt: AttemptInfo
    rank: WriterRank
    exporter: Exporter | None
    first_rows: FirstRows


def join_run(
    model: nn.Module,
    run_dir: Path,
    spec: RunSpec,
    *,
    resume: Mapping[str, object] | None,
    mesh: Any,
    data_axes: Sequence[str] | None,
    options: ExporterOptions,
    documents: DocumentResolver | None,
    microbatch_tensors: Sequence[str],
    mismatch_as_gap: bool,
) -> JoinedRun:
    """Claim an attempt and start the exporter; arguments as of `ExportHook.attach`. Collective."""
    agreed = (spec.sequence_length, spec.vocab_size, spec.run_id, spec.shorter_rows)
    ranks_agree("sequence_length, vocab_size, run_id, shorter_rows", agreed)
    rank = elect(mesh_of(model) if mesh is None else mesh, data_axes)
    first_rows = FirstRows()
    run, attempt = on_first_rank(
        lambda: _claim_attempt(run_dir, spec, rank.num_writers, resume, microbatch_tensors), run_dir
    )
    exporter = on_every_rank(
        lambda: _start_exporter(
            run_dir, run, attempt, rank, options, documents, mismatch_as_gap=mismatch_as_gap, on_tokens=first_rows.add
        ),
        run_dir,
    )
    return JoinedRun(run_dir=run_dir, run=run, attempt=attempt, rank=rank, exporter=exporter, first_rows=first_rows)


def _claim_attempt(
    run_dir: Path,
    spec: RunSpec,
    num_writers: int,
    resume: Mapping[str, object] | None,
    microbatch_tensors: Sequence[str],
) -> tuple[RunInfo, AttemptInfo]:
    file_system = OsFileSystem()
    if spec.tokenizer is not None:
        check_tokenizer(spec.tokenizer, spec.vocab_size)
    run = open_or_create_run(file_system, run_dir, spec)
    token = None if resume is None else ResumeToken.from_state(resume)
    layout = {"num_writers": num_writers, "pid": os.getpid()}
    config = {**spec.config, "layout": layout}
    return run, claim_attempt(
        file_system, run_dir, run, num_writers=num_writers, resume=token, config=config, defaults=_SEEN_BY_FORWARD,
        microbatch_tensors=microbatch_tensors,
    )  # fmt: skip


def _start_exporter(
    run_dir: Path,
    run: RunInfo,
    attempt: AttemptInfo,
    rank: WriterRank,
    options: ExporterOptions,
    documents: DocumentResolver | None,
    *,
    mismatch_as_gap: bool,
    on_tokens: Callable[[int, npt.NDArray[np.integer]], None],
) -> Exporter | None:
    if not rank.is_writer:
        return None
    kernels()  # compiled now rather than at the first micro-batch
    file_system = OsFileSystem()
    directory = ExportPaths(run_dir).attempt_dir(attempt.attempt)
    writer = RankWriter(file_system, directory, run, attempt, rank.dp_rank, roll_size_bytes=options.roll_size_bytes)
    secret = RunReader(run_dir, file_system).secret()
    return Exporter(
        writer, run, attempt, rank.dp_rank, secret, options, documents, mismatch_as_gap=mismatch_as_gap,
        on_tokens=on_tokens,
    )  # fmt: skip
