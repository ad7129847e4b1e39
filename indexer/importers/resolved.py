"""A copy of an export in which sequences without documents have boundaries: `identity unknown`, but cut where
documents end.

Exports are never rewritten, and leaves cover segments, so this is an export of its own: the same run id, attempts,
steps, addresses, tokens, tensors and records; another secret, other leaves. Segments that name documents stay. Its
origin says what was done.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from indexer.durable import sha256_of
from indexer.importers.frames import write_frames
from indexer.importers.new_export import check_end_of_document, new_export
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.boundaries import segments_by_eos, segments_by_lengths
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.origin import Origin, origin_of
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.reading.chain import WriterLog
from train_hooks.export_format.reading.reader import AttemptReader, RunReader
from train_hooks.export_format.records import AttemptInfo, EvidenceDefaults, Row, RunInfo, Segment, TensorRecord
from train_hooks.export_format.removal import removal_of
from train_hooks.export_format.tensors import as_current_tensor, bits_dtype, decode_tensor, encode_tensor
from train_hooks.export_format.writing.attempts import ResumeToken, RunSpec, claim_attempt, open_or_create_run
from train_hooks.export_format.writing.frames import Frame, FrameMaker

__all__ = ["Boundaries", "ResolvedExport", "resolve_export"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Boundaries:
    """How documents are told apart: by the token `eos` behind each, or by the cumulative lengths in the tensor `lengths`."""

    eos: int | None = None
    lengths: str | None = None

    def __post_init__(self) -> None:
        if (self.eos is None) == (self.lengths is None):
            raise InputError("expected one of --eos and --cu-seqlens: what tells documents apart")

    def of(self, rows: Sequence[Row]) -> list[tuple[Segment, ...]]:
        """The segments of each row of one micro-batch. Raises InputError where the tensor is not there."""
        if self.eos is not None:
            return [segments_by_eos(row.tokens, self.eos) for row in rows]
        found = []
        for place, row in enumerate(rows):
            own = _tensor(row, str(self.lengths))
            whole = _tensor(rows[0], str(self.lengths), whole=True) if own is None else None
            if own is None and whole is None:
                names = sorted({tensor.name for tensor in row.tensors})
                raise InputError(
                    f"{row.address}: expected a tensor {self.lengths!r}, found {', '.join(names) or 'none'}"
                )
            lengths = own if own is not None else np.asarray(whole) - place * len(row.tokens)
            found.append(segments_by_lengths(np.asarray(lengths, np.int64).reshape(-1), len(row.tokens)))
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedExport:
    """What was copied. num_resolved: rows that had no segments and have some now; num_segments: theirs."""

    run_id: str
    num_rows: int
    num_resolved: int
    num_segments: int


def resolve_export(
    run: RunReader, run_dir: Path, boundaries: Boundaries, *, progress: Callable[[int, int], None] | None = None
) -> ResolvedExport:
    """Copy a run's export to `run_dir`, with boundaries. progress: frames, of all.

    Raises RunError where `run_dir` holds an export, DamageError for a frame that is damaged.
    """
    check_end_of_document(boundaries.eos, run.info.vocab_size)
    spec = RunSpec(
        sequence_length=run.info.sequence_length,
        vocab_size=run.info.vocab_size,
        run_id=run.info.run_id,
        tokenizer=None if run.info.tokenizer_file is None else run.tokenizer_path(),
        config={**run.info.config, **_origin(run, boundaries).to_config()},
        shorter_rows=run.info.shorter_rows,
    )
    with new_export(run_dir) as made:
        copy = open_or_create_run(OsFileSystem(), made, spec)
        return _Copy(run, copy, made, boundaries, progress).run()


def _origin(run: RunReader, boundaries: Boundaries) -> Origin:
    before = origin_of(run.info)
    cut = f"token {boundaries.eos}" if boundaries.eos is not None else f"the lengths in {boundaries.lengths}"
    original = sha256_of(run.file_system.read(run.paths.run_json))
    details = {**before.details, "original_run_json_sha256": original}
    return replace(before, what=f"{before.what}; documents told apart afterwards, by {cut}", details=details)


class _Copy:
    def __init__(
        self,
        run: RunReader,
        copy: RunInfo,
        run_dir: Path,
        boundaries: Boundaries,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._run, self._copy, self._run_dir, self._boundaries = run, copy, run_dir, boundaries
        self._secret = RunReader(run_dir).secret()
        self._progress = progress
        self._num_frames = self._total = self._num_rows = self._num_resolved = self._num_segments = 0

    def run(self) -> ResolvedExport:
        attempts = {attempt.info.attempt: attempt for attempt in self._run.attempts()}
        logs = {number: attempt.writers() for number, attempt in attempts.items()}
        self._total = sum(len(file.acks) for of in logs.values() for log in of.values() for file in log.files)
        for number in self._run.attempt_numbers():
            if number not in attempts:  # claimed, and died at once: the numbers of the others must stay
                OsFileSystem().make_directory(ExportPaths(self._run_dir).attempt_dir(number))
                continue
            claimed = self._claim(attempts[number].info)
            for log in logs[number].values():
                make = FrameMaker(claimed, log.dp_rank, self._secret)
                frames = self._frames(attempts[number], make, log)
                write_frames(self._run_dir, self._copy, claimed, log.dp_rank, frames)
        return ResolvedExport(
            run_id=self._copy.run_id,
            num_rows=self._num_rows,
            num_resolved=self._num_resolved,
            num_segments=self._num_segments,
        )

    def _claim(self, info: AttemptInfo) -> AttemptInfo:
        resume = None
        if info.parent_attempt is not None:
            resume = ResumeToken(run_id=info.run_id, attempt=info.parent_attempt, global_step=info.resume_step)
        return claim_attempt(
            OsFileSystem(), self._run_dir, self._copy, num_writers=info.num_writers, resume=resume, config=info.config,
            defaults=EvidenceDefaults(
                evidence=info.default_evidence, tensor_evidence=info.default_tensor_evidence, matched=info.default_matched
            ),
        )  # fmt: skip

    def _frames(self, attempt: AttemptReader, make: FrameMaker, log: WriterLog) -> Iterator[Frame]:
        for file in log.files:
            for ack in file.acks:
                self._num_frames += 1
                if self._progress is not None:
                    self._progress(self._num_frames, self._total)
                if ack.kind not in (AckKind.STEP, AckKind.NOTE):
                    continue
                found = attempt.frame(file, ack)
                rows = self._rows(make, attempt.rows(found))
                yield make.frame(ack.kind, ack.global_step, ack.status, rows, found.records)

    def _rows(self, make: FrameMaker, rows: Sequence[Row]) -> tuple[Row, ...]:
        made: list[Row] = []
        for row in rows:
            if removal_of(row) is not None:
                raise InputError(
                    f"{row.address}: tokens of it were removed from the export (a takedown), so it cannot be copied; "
                    "resolve a copy of the export from before, and take the tokens out of that"
                )
        for _, group in groupby(rows, key=lambda row: row.address.microbatch):
            microbatch = list(group)
            unnamed = not all(row.segments for row in microbatch)
            boundaries = self._boundaries.of(microbatch) if unnamed else []
            for place, row in enumerate(microbatch):
                segments = row.segments or boundaries[place]
                if not row.segments:
                    self._num_resolved += bool(segments)
                    self._num_segments += len(segments)
                made.append(_row(make, row, segments))
        self._num_rows += len(made)
        return tuple(made)


def _row(make: FrameMaker, row: Row, segments: tuple[Segment, ...]) -> Row:
    return make.row(
        row.address,
        row.tokens,
        segments,
        tuple(_encoded(tensor, row, segments) for tensor in row.tensors),
        sample_index=row.sample_index,
        status=row.status,
        loss=row.loss,
        evidence=row.evidence,
        matched=row.matched,
        relation=row.relation,
    )


def _encoded(tensor: TensorRecord, row: Row, segments: tuple[Segment, ...]) -> TensorRecord:
    """A tensor of any format, in the current one, for a row whose segments are others now."""
    known, value = as_current_tensor(tensor, row.format_version), decode_tensor(tensor, row.tokens, row.segments)
    dtype = known.dtype if bits_dtype(known.dtype) is not None else None
    if tensor.encoding == "tokens":
        return known
    return encode_tensor(
        known.name, value, row.tokens, segments, dtype=dtype, whole=known.whole, evidence=known.evidence
    )


def _tensor(row: Row, name: str, *, whole: bool = False) -> np.ndarray | None:
    """A tensor of a row, or of its micro-batch as a whole; None where there is none."""
    for tensor in row.tensors:
        known = as_current_tensor(tensor, row.format_version)
        if (known.name, known.whole) == (name, whole):
            return np.asarray(decode_tensor(tensor, row.tokens, row.segments))
    return None
