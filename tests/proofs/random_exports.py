"""Random exports of format 3 with everything that the format knows, from a seed.

The simulated job makes them: crashes, torn tails, failed writes, rolled files, gaps, notes, rollbacks, resizes. Here its
micro-batches are of many kinds, and what it wrote is repaired, compacted and loses tokens to takedowns.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.simulated_job.content import loss_of
from tests.simulated_job.job import RUN_DIR, Job, Rank
from tests.simulated_job.memory_files import MemoryFileSystem
from train_hooks.export_format.acknowledgement import AckKind
from train_hooks.export_format.errors import IncompleteError
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import (
    Evidence,
    Matched,
    Row,
    RowLoss,
    Segment,
    SequenceAddress,
    StepRecord,
    StepStatus,
)
from train_hooks.export_format.upkeep.compact import compact
from train_hooks.export_format.upkeep.repair import repair
from train_hooks.export_format.upkeep.takedown import Takedown, take_out
from train_hooks.export_format.writing.attempts import RunSpec
from train_hooks.hook.export.committed_step import CommittedStep, as_gap, losses_record, note_step
from train_hooks.hook.export.staging import StagedMicrobatch

__all__ = ["RichJob", "all_rows", "random_export", "sealed_export", "some_takedown"]

Array = npt.NDArray[np.generic]
Maker = Callable[[random.Random, "npt.NDArray[np.int64]", Sequence[Segment]], Array]
_RELATIONS = ("flatten", "[:, :-1]", "[:, 1:]", "dtype input_ids", "dtype labels; rows 0:2", "columns 1:3")
_METRICS = (0.25, 1e300, float("nan"), float("-inf"), 7.0)


def _next(_: random.Random, tokens: "npt.NDArray[np.int64]", __: Sequence[Segment]) -> Array:
    labels = np.roll(tokens, -1)
    labels[-1] = -100
    return labels


def _next_in_segment(rng: random.Random, tokens: "npt.NDArray[np.int64]", segments: Sequence[Segment]) -> Array:
    labels = _next(rng, tokens, segments)
    for segment in segments[:-1]:
        labels[segment.start + segment.length - 1] = -100
    return labels


def _per_segment(segments: Sequence[Segment], length: int, *, positions: bool) -> Array:
    found = np.zeros(length, np.int32)
    for index, segment in enumerate(segments):
        end = segment.start + segment.length
        found[segment.start : end] = np.arange(segment.length) if positions else index
    return found


def _noise(rng: random.Random, shape: tuple[int, ...], dtype: str) -> Array:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(rng.randbytes(size), dtype).reshape(shape)


_ROW_TENSORS: dict[str, Maker] = {
    "labels": _next,
    "shifted": _next_in_segment,
    "mask": lambda rng, tokens, _: _noise(rng, (len(tokens),), "<f4"),
    "ones": lambda rng, tokens, _: np.full(len(tokens), rng.choice([1.0, float("nan")])),
    "position_ids": lambda _, tokens, __: np.arange(len(tokens)),
    "segment_positions": lambda _, tokens, segments: _per_segment(segments, len(tokens), positions=True),
    "segment_ids": lambda _, tokens, segments: _per_segment(segments, len(tokens), positions=False),
    "copy": lambda _, tokens, __: tokens.astype(np.int32),
    "flags": lambda rng, tokens, _: np.array([rng.random() < 0.5 for _ in tokens]),
    "half": lambda rng, tokens, _: _noise(rng, (len(tokens),), "<i2"),
    "eight": lambda rng, tokens, _: _noise(rng, (len(tokens),), "|u1"),
    "pairs": lambda rng, _, __: _noise(rng, (2, 3), "<u8"),
    "scalar": lambda rng, _, __: np.asarray(rng.random()),
    "empty": lambda _, __, ___: np.zeros((0, 4), np.int16),
}
_BITS = {"half": "bfloat16", "eight": "float8_e4m3fn", "batch_half": "bfloat16"}
_BATCH_TENSORS: dict[str, Callable[[random.Random, int], Array]] = {
    "cu_seqlens": lambda rng, size: np.array([0, *sorted(rng.randrange(size + 1) for _ in range(3)), size], np.int32),
    "temperature": lambda rng, _: np.asarray(rng.random(), np.float32),
    "batch_half": lambda rng, _: _noise(rng, (3,), "<i2"),
}


class RichJob(Job):
    """A simulated job with micro-batches of every kind that the format can hold; the kinds are those of its seed."""

    def __init__(self, seed: int, *, length: int | None = None) -> None:
        super().__init__(seed)
        rng = self.rng
        self.length = length or rng.choice([1, 2, 5, 16, 40, 300, 600])
        self.shorter = rng.random() < 0.4
        self.vocabulary = rng.choice([7, 300, 65_535, 100_000])
        self.spec = RunSpec(
            sequence_length=self.length, vocab_size=self.vocabulary, run_id=rng.choice(["job", "Run_1.x-y"]),
            config={"é": [1, None]}, shorter_rows=self.shorter,
        )  # fmt: skip
        self._names = sorted(rng.sample(sorted(_ROW_TENSORS), rng.randint(0, 5)))
        self._batch_names = sorted(rng.sample(sorted(_BATCH_TENSORS), rng.randint(0, 2)))
        self._tokens = rng.choice([None, ("input_ids", np.int64), ("tokens", np.int32)])
        self._samples = rng.random() < 0.7

    def step(self, rank: Rank, step: int, num_microbatches: int, num_slots: int, status: StepStatus) -> None:
        """One rank consumes and commits one step; some have a gap, some are followed by a note."""
        rng = self.rng
        microbatches = tuple(self._microbatch(num_slots) for _ in range(num_microbatches))
        committed = CommittedStep(
            kind=AckKind.STEP, global_step=step, status=status, microbatches=microbatches, size_bytes=0,
            records=tuple(self._records(step)),
        )  # fmt: skip
        rank.fed[step] = ()
        if rng.random() < 0.07:
            rank.queue.append(as_gap(committed, "the queue was full 満"))
            return
        rank.queue.append(committed)
        if rng.random() < 0.4:
            late = [losses_record(step, self._losses(microbatches), 2.5)] if microbatches[0].loss is None else []
            rank.queue.append(note_step(step, (*late, *self._records(step))))

    def _records(self, step: int) -> Iterator[StepRecord]:
        for _ in range(self.rng.choice([0, 1, 1, 2])):
            values = {name: self.rng.choice(_METRICS) for name in self.rng.sample(["loss", "lr", "grad/é"], 2)}
            yield StepRecord(global_step=self.rng.randint(1, step), kind="metrics", unix_time_s=0.5, values=values)

    def _losses(self, microbatches: Sequence[StagedMicrobatch]) -> list[RowLoss]:
        return [
            RowLoss(
                microbatch=index, slot=slot, loss=loss_of(self.rng),
                segments=tuple(loss_of(self.rng) for _ in segments) if self.rng.random() < 0.5 else None,
            )
            for index, microbatch in enumerate(microbatches)
            for slot, segments in enumerate(microbatch.segments or [()] * microbatch.num_slots)
            if microbatch.loss is None and self.rng.random() < 0.8
        ]  # fmt: skip

    def _microbatch(self, num_slots: int) -> StagedMicrobatch:
        rng = self.rng
        length = rng.randint(1, self.length) if self.shorter else self.length
        tokens = np.array([[rng.randrange(self.vocabulary) for _ in range(length)] for _ in range(num_slots)])
        segments = [tuple(self._segments(length)) for _ in range(num_slots)] if rng.random() < 0.8 else []
        has_loss, odd, first = rng.random() < 0.5, rng.random() < 0.4, rng.randrange(1 << 40)
        key, dtype = self._tokens if self._tokens is not None else (None, np.int64)
        rows = {
            name: np.stack([_ROW_TENSORS[name](rng, row, own) for row, own in zip(tokens, segments or [()] * num_slots,
            strict=True)]) for name in self._names
        }  # fmt: skip
        names = [*self._names, *self._batch_names]
        return StagedMicrobatch(
            tokens=tokens.astype(dtype),
            tensors=rows,
            batch_tensors={name: _BATCH_TENSORS[name](rng, num_slots * length) for name in self._batch_names},
            dtypes={name: _BITS[name] for name in names if name in _BITS},
            segments=segments,
            sample_index=[first + slot for slot in range(num_slots)] if self._samples else None,
            sample_start=[rng.randrange(9) for _ in range(num_slots)] if self._samples and odd else None,
            loss=[loss_of(rng) for _ in range(num_slots)] if has_loss else None,
            segment_losses=[[loss_of(rng) for _ in own] for own in segments] if has_loss and segments and odd else None,
            evidence=rng.choice([*Evidence, None]) if odd else None,
            matched=rng.choice([*Matched, None]) if odd else None,
            relation=rng.choice(_RELATIONS) if odd else None,
            tensor_evidence={name: rng.choice([*Evidence]) for name in names if rng.random() < 0.5} if odd else {},
            tokens_key=key,
        )

    def _segments(self, length: int) -> Iterator[Segment]:
        """Documents one after the other, with and without a hole between them."""
        rng, position = self.rng, 0
        while position < length and rng.random() < 0.9:
            start = min(length - 1, position + rng.choice([0, 0, 0, 1, 3]))
            size = rng.randint(1, length - start)
            known = rng.random() < 0.8
            yield Segment(
                start=start, length=size, source=rng.choice(["web", "本", ""]),
                document_id=f"d{rng.randrange(9)}é" if known else "", document_token_offset=rng.choice([-1, 0, 1 << 40]),
            )  # fmt: skip
            position = start + size


def random_export(seed: int) -> MemoryFileSystem:
    """The files of a run in `RUN_DIR`: as crashes left them, or mended, compacted and with tokens taken out."""
    job = RichJob(seed)
    rng = job.rng
    for _ in range(rng.choice([2, 3, 4])):
        job.attempt()
    for rank in job.zombies:
        rank.writer.abandon()
    files = job.files
    if not files.exists(RUN_DIR / "export" / "run.json"):
        return files
    if rng.random() < 0.6:
        repair(RUN_DIR, file_system=files, assume_dead=True)
    for _ in range(rng.choice([0, 1, 2])):
        if rng.random() < 0.6:
            compact(RunReader(RUN_DIR, files), row_group_bytes=rng.choice([1, 3000, 1 << 20]), level=1)
        if rng.random() < 0.6:
            try:
                take_out(RunReader(RUN_DIR, files), some_takedown(rng, all_rows(files)))
            except IncompleteError:  # a file that holds some of it is open
                continue
    return files


def all_rows(files: MemoryFileSystem) -> list[Row]:
    """Every believed row."""
    return [
        row
        for attempt in RunReader(RUN_DIR, files).attempts()
        for frame in attempt.frames(1, 1 << 60)
        for row in attempt.rows(frame)
    ]


def some_takedown(rng: random.Random, rows: Sequence[Row]) -> Takedown:
    """A document, a row and a span, where there are some."""
    documents = sorted({(part.source, part.document_id) for row in rows for part in row.segments if part.document_id})
    spans: set[tuple[SequenceAddress, int, int]] = set()
    for row in rng.sample(rows, min(2, len(rows))):
        start = rng.randrange(len(row.tokens))
        spans.add((row.address, start, rng.randint(start + 1, len(row.tokens))))
    return Takedown(
        documents=frozenset(rng.sample(documents, min(1, len(documents)))),
        rows=frozenset(row.address for row in rng.sample(rows, min(1, len(rows)))),
        spans=frozenset(spans),
    )


def sealed_export(seed: int, *, close: bool = True, tokenizer: Path | None = None, length: int = 40) -> RichJob:
    """A run of two attempts of two writers each, files that roll, a barrier at the end of each attempt.

    All files are sealed; with close=False those of the second attempt are as a training leaves them that goes on.
    """
    job = RichJob(seed, length=length)
    if tokenizer is not None:
        job.spec = RunSpec(
            sequence_length=length, vocab_size=job.vocabulary, run_id="job", tokenizer=tokenizer, config={},
            shorter_rows=job.shorter,
        )  # fmt: skip
    for number in (1, 2):
        ranks = job.start(
            num_writers=2, resume=job.checkpoints[0] if number == 2 else None, roll_size_bytes=job.rng.choice([1, 9000])
        )
        first = ranks[0].info.resume_step + 1
        for step in range(first, first + 4):
            for rank in ranks:
                job.step(rank, step, 2, 1 if job.length > 100 else 2, StepStatus.APPLIED)
            if not close and step == first + 3:  # no note behind the step: a barrier does not cover it
                for rank in ranks:
                    rank.queue = [item for item in rank.queue if item.kind is AckKind.STEP]
            if step in (first + 1, first + 3):
                job.checkpoint(ranks, step)
        for rank in ranks:
            if close or number == 1:
                rank.writer.close()
    return job
