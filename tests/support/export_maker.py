"""Makes real exports without torch: the exporter itself, fed with arrays. And a brute-force scan of what it wrote."""

import atexit
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from train_hooks import Segment, StepStatus
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Row
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.writer import RankWriter
from train_hooks.hook.export.exporter import Exporter, ExporterOptions
from train_hooks.hook.export.staging import StagedMicrobatch

Tokens = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True, slots=True)
class MadeStep:
    """One step to export: by dp_rank the micro-batches, each tokens [num_slots, sequence_length], with losses, tensors."""

    microbatches: Mapping[int, Sequence[Tokens]]
    segments: Mapping[int, Sequence[Sequence[Sequence[Segment]]]] | None = None
    status: StepStatus = StepStatus.APPLIED
    metrics: Mapping[str, float] | None = None
    losses: Mapping[int, Sequence[Sequence[float]]] | None = None
    tensors: Mapping[int, Sequence[Mapping[str, npt.NDArray[np.generic]]]] | None = None


def make_attempt(
    run_dir: Path,
    spec: RunSpec,
    steps: Sequence[MadeStep],
    *,
    num_writers: int = 1,
    resume: ResumeToken | None = None,
    close: bool = True,
) -> int:
    """Export `steps` as one attempt; returns its number. With close=False the files stay as a crash leaves them."""
    file_system = OsFileSystem()
    run = open_or_create_run(file_system, run_dir, spec)
    attempt = claim_attempt(file_system, run_dir, run, num_writers=num_writers, resume=resume, config={})
    secret = RunReader(run_dir).secret()
    for dp_rank in range(num_writers):
        writer = RankWriter(file_system, ExportPaths(run_dir).attempt_dir(attempt.attempt), run, attempt, dp_rank)
        exporter = Exporter(writer, run, attempt, dp_rank, secret, ExporterOptions(group_interval_s=0.0))
        for number, step in enumerate(steps, attempt.resume_step + 1):
            for index, tokens in enumerate(step.microbatches.get(dp_rank, ())):
                segments = step.segments[dp_rank][index] if step.segments is not None else ()
                loss = step.losses[dp_rank][index] if step.losses is not None else None
                tensors = step.tensors[dp_rank][index] if step.tensors is not None else {}
                exporter.stage(StagedMicrobatch(tokens=tokens, segments=segments, loss=loss, tensors=tensors))
            exporter.commit(number, status=step.status, metrics=step.metrics if dp_rank == 0 else None)
        exporter.checkpoint_barrier(attempt.resume_step + len(steps))
        if close:
            exporter.close()
        else:
            atexit.unregister(exporter.close)
            writer.abandon()
    return attempt.attempt


def all_rows(run_dir: Path) -> list[Row]:
    """Every committed row of an export, read one by one, in address order."""
    rows: list[Row] = []
    for attempt in RunReader(run_dir).attempts():
        committed = set(attempt.committed_steps())
        for frame in attempt.frames(0, 1 << 40):
            rows += [row for row in attempt.rows(frame) if row.address.global_step in committed]
    return sorted(rows, key=lambda row: row.address)


def brute_force_spans(
    rows: Sequence[Row], query: Sequence[int], min_length: int
) -> list[tuple[int, int, list[tuple[Row, int]]]]:
    """[(start, end, [(row, offset), …])]: every maximal span of `query` and each place where it occurs, by scanning."""
    texts = [tuple(row.tokens.tolist()) for row in rows]
    spans: list[tuple[int, int, list[tuple[Row, int]]]] = []
    furthest = 0
    for start in range(len(query)):
        end, places = start, [(index, at) for index, text in enumerate(texts) for at in range(len(text))]
        while end < len(query):
            longer = [
                (index, at)
                for index, at in places
                if at + end - start < len(texts[index]) and texts[index][at + end - start] == query[end]
            ]
            if not longer:
                break
            places, end = longer, end + 1
        if end - start >= min_length and end > furthest:
            spans.append((start, end, [(rows[index], at) for index, at in places]))
        furthest = max(furthest, end)
    return spans
