"""What a writer makes: rows with their leaves, and frames with their record commitments.

The exporter, the importers and the copies all make theirs here, so that what an acknowledgement vouches for is
computed in one place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.acknowledgement import AckKind, Counts
from train_hooks.export_format.leaf import RowLeaf, row_salt
from train_hooks.export_format.record_commitment import count_evidence, record_commitment
from train_hooks.export_format.records import (
    AttemptInfo,
    Evidence,
    Matched,
    Row,
    Segment,
    SequenceAddress,
    StepRecord,
    StepStatus,
    TensorRecord,
)
from train_hooks.export_format.schema import encode_step_records

__all__ = ["Frame", "FrameMaker"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """What one record batch of a segment file holds: a committed step's rows, or step records alone.

    records_json: the step records as they are stored, '' for none. commitment: the record commitment. evidence,
    matched: how many rows are known in which way, as `Ack` has them.
    """

    kind: AckKind
    global_step: int
    status: StepStatus | None
    rows: tuple[Row, ...]
    records_json: str
    commitment: bytes
    evidence: Counts
    matched: Counts
    has_gap: bool
    has_losses: bool


class FrameMaker:
    """Makes the rows and frames of one dp_rank of one attempt, whose format is the current one."""

    def __init__(self, attempt: AttemptInfo, dp_rank: int, secret: bytes) -> None:
        self._attempt, self._dp_rank, self._secret = attempt, dp_rank, secret

    def address(self, global_step: int, microbatch: int, slot: int) -> SequenceAddress:
        """Where a row of this writer is."""
        return SequenceAddress(
            run_id=self._attempt.run_id, attempt=self._attempt.attempt, global_step=global_step, dp_rank=self._dp_rank,
            microbatch=microbatch, slot=slot,
        )  # fmt: skip

    def row(
        self,
        address: SequenceAddress,
        tokens: npt.NDArray[np.unsignedinteger],
        segments: tuple[Segment, ...],
        tensors: tuple[TensorRecord, ...],
        *,
        sample_index: int | None,
        status: StepStatus,
        loss: float | None = None,
        evidence: Evidence | None = None,
        matched: Matched | None = None,
        relation: str | None = None,
    ) -> Row:
        """A row and its leaf. Evidence and matched: None where the attempt's defaults say the same."""
        text, attempt = str(address), self._attempt
        return Row(
            address=address,
            tokens=tokens,
            segments=segments,
            tensors=tensors,
            sample_index=sample_index,
            status=status,
            loss=loss,
            leaf=RowLeaf(row_salt(self._secret, text), text, tokens, segments).hash(sample_index, tensors),
            evidence=None if evidence is attempt.default_evidence else evidence,
            matched=None if matched is attempt.default_matched else matched,
            relation=relation,
        )

    def frame(
        self,
        kind: AckKind,
        global_step: int,
        status: StepStatus | None,
        rows: Sequence[Row],
        records: Sequence[StepRecord] = (),
    ) -> Frame:
        """A frame and its record commitment."""
        text = encode_step_records(records) if records else ""
        evidence, matched = count_evidence(rows, self._attempt)
        return Frame(
            kind=kind,
            global_step=global_step,
            status=status,
            rows=tuple(rows),
            records_json=text,
            commitment=record_commitment(
                self._secret, self._attempt, self._dp_rank, kind, global_step, status, rows, text
            ),
            evidence=evidence,
            matched=matched,
            has_gap=any(record.kind == "gap" for record in records),
            has_losses=any(record.kind == "losses" for record in records),
        )
