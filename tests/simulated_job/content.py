"""What the simulated job feeds to its model, as the job itself remembers it, and the same of a row that is read."""

import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from train_hooks.export_format.records import (
    AttemptInfo,
    Evidence,
    EvidenceDefaults,
    Matched,
    Row,
    RowLoss,
    Segment,
    StepStatus,
)
from train_hooks.export_format.tensors import decode_tensor
from train_hooks.export_format.writing.attempts import DECLARED
from train_hooks.hook.export.staging import StagedMicrobatch

__all__ = [
    "LENGTH",
    "VOCABULARY",
    "FedRow",
    "as_fed",
    "fed_rows",
    "fetch",
    "late_loss",
    "loss_bits",
    "loss_of",
    "some_defaults",
]

LENGTH, VOCABULARY = 4, 60
_LOSSES = (None, 0.0, -0.0, 1e-42, 3.25, float("nan"), float("inf"))
_RELATIONS = ("flatten", "[:, :-1]", "dtype input_ids; rows 0:2", "columns 1:3")
Losses = tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True)
class FedRow:
    """What the model was fed as one sequence. Losses are the four bytes of a float32, so that NaN equals itself."""

    microbatch: int
    slot: int
    tokens: tuple[int, ...]
    mask: tuple[float, ...]
    segments: tuple[Segment, ...]
    sample_index: int
    status: StepStatus
    loss: bytes | None
    segment_losses: Losses
    evidence: Evidence | None
    matched: Matched | None
    relation: str | None
    mask_evidence: Evidence | None


def some_defaults(rng: random.Random) -> EvidenceDefaults:
    """What an attempt says of its rows where they say nothing."""
    forward = EvidenceDefaults(evidence=Evidence.FORWARD, tensor_evidence=Evidence.FORWARD, matched=Matched.WHOLE)
    return rng.choice([DECLARED, EvidenceDefaults(), forward])


def loss_of(rng: random.Random) -> float | None:
    """A loss, of the odd ones too."""
    return rng.choice(_LOSSES) if rng.random() < 0.3 else rng.random() * 9


def loss_bits(loss: float | None) -> bytes | None:
    """The four bytes of a loss as the format keeps it."""
    return None if loss is None else struct.pack("<f", loss)


def fetch(rng: random.Random, num_slots: int, first_sample: int) -> StagedMicrobatch:
    """A micro-batch; one in a few has losses, or is known otherwise than the attempt's defaults say."""
    segments = [tuple(_segments(rng, slot)) for slot in range(num_slots)]
    has_loss, odd = rng.random() < 0.3, rng.random() < 0.2
    return StagedMicrobatch(
        tokens=np.array([[rng.randrange(VOCABULARY) for _ in range(LENGTH)] for _ in range(num_slots)]),
        tensors={"mask": np.array([[rng.random() for _ in range(LENGTH)] for _ in range(num_slots)], np.float32)},
        segments=segments,
        sample_index=list(range(first_sample, first_sample + num_slots)),
        loss=[loss_of(rng) for _ in range(num_slots)] if has_loss else None,
        segment_losses=[[loss_of(rng) for _ in own] for own in segments] if has_loss and odd else None,
        evidence=rng.choice([*Evidence, None]) if odd else None,
        matched=rng.choice([*Matched, None]) if odd else None,
        relation=rng.choice(_RELATIONS) if odd else None,
        tensor_evidence={"mask": rng.choice([*Evidence])} if odd else {},
    )


def _segments(rng: random.Random, slot: int) -> Iterator[Segment]:
    cut = rng.randint(1, LENGTH - 1)
    yield Segment(start=0, length=cut, source="web", document_id=f"d{slot}", document_token_offset=0)
    yield Segment(start=cut, length=LENGTH - cut, source="本", document_id="é", document_token_offset=7)


def fed_rows(microbatches: Sequence[StagedMicrobatch], status: StepStatus, attempt: AttemptInfo) -> tuple[FedRow, ...]:
    """The rows of a step."""
    return tuple(
        _fed(microbatch, index, slot, status, attempt)
        for index, microbatch in enumerate(microbatches)
        for slot in range(microbatch.num_slots)
    )


def _fed(microbatch: StagedMicrobatch, index: int, slot: int, status: StepStatus, attempt: AttemptInfo) -> FedRow:
    assert microbatch.sample_index is not None
    segments = tuple(microbatch.segments[slot])
    losses = [None] * len(segments) if microbatch.segment_losses is None else microbatch.segment_losses[slot]
    return FedRow(
        microbatch=index,
        slot=slot,
        tokens=tuple(microbatch.tokens[slot].tolist()),
        mask=tuple(np.asarray(microbatch.tensors["mask"][slot]).tolist()),
        segments=segments,
        sample_index=microbatch.sample_index[slot],
        status=status,
        loss=None if microbatch.loss is None else loss_bits(microbatch.loss[slot]),
        segment_losses=tuple(map(loss_bits, losses)),
        evidence=microbatch.evidence or attempt.default_evidence,
        matched=microbatch.matched or attempt.default_matched,
        relation=microbatch.relation,
        mask_evidence=microbatch.tensor_evidence.get("mask", attempt.default_tensor_evidence),
    )


def as_fed(row: Row, attempt: AttemptInfo) -> FedRow:
    """A row that was read, as it must have been fed."""
    assert row.sample_index is not None
    return FedRow(
        microbatch=row.address.microbatch,
        slot=row.address.slot,
        tokens=tuple(row.tokens.tolist()),
        mask=tuple(decode_tensor(row.tensors[0], row.tokens, row.segments).tolist()),
        segments=tuple(_without_loss(segment) for segment in row.segments),
        sample_index=row.sample_index,
        status=row.status,
        loss=loss_bits(row.loss),
        segment_losses=tuple(loss_bits(segment.loss) for segment in row.segments),
        evidence=row.evidence or attempt.default_evidence,
        matched=row.matched or attempt.default_matched,
        relation=row.relation,
        mask_evidence=row.tensors[0].evidence or attempt.default_tensor_evidence,
    )


def _without_loss(segment: Segment) -> Segment:
    return Segment(
        start=segment.start, length=segment.length, source=segment.source, document_id=segment.document_id,
        document_token_offset=segment.document_token_offset,
    )  # fmt: skip


def late_loss(rng: random.Random, row: FedRow) -> RowLoss:
    """A loss that comes after the row's step was written; sometimes with those of its segments."""
    parts = tuple(loss_of(rng) for _ in row.segments) if rng.random() < 0.5 else None
    return RowLoss(microbatch=row.microbatch, slot=row.slot, loss=loss_of(rng), segments=parts)
