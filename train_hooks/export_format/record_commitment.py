"""The record commitment: what an acknowledgement vouches for beside the leaves of a step's rows.

It covers status, losses, evidence and step records of a frame, so that they cannot be changed unseen in a compacted
file either, where the frame's own hash no longer applies. `docs/export_format.md` gives the bytes. Its salt is a
keyed hash of the content, so whoever has the run secret can make it again, and whoever has not cannot test guesses
until the salt is published.
"""

import hashlib
import hmac
import struct
from collections.abc import Sequence

from train_hooks.export_format.acknowledgement import AckKind, Counts
from train_hooks.export_format.errors import DamageError
from train_hooks.export_format.records import AttemptInfo, Evidence, Matched, Row, StepStatus
from train_hooks.export_format.removal import tensor_evidence_of

__all__ = ["count_evidence", "record_commitment"]

_EVIDENCE: tuple[Evidence | None, ...] = (None, Evidence.FORWARD, Evidence.LOADER, Evidence.DECLARED)
_MATCHED: tuple[Matched | None, ...] = (None, Matched.WHOLE, Matched.SLICE, Matched.COUNT)
_STATUS: tuple[StepStatus | None, ...] = (None, *StepStatus)
_NO_TEXT = bytes(4)
_EVIDENCE_CODE = {word: code for code, word in enumerate(_EVIDENCE)}
_MATCHED_CODE = {word: code for code, word in enumerate(_MATCHED)}
assert _STATUS[1:] == (
    StepStatus.APPLIED, StepStatus.SKIPPED_UPDATE, StepStatus.SKIPPED_DATA, StepStatus.RERUN
)  # fmt: skip


def record_commitment(
    secret: bytes,
    attempt: AttemptInfo,
    dp_rank: int,
    kind: AckKind,
    global_step: int,
    status: StepStatus | None,
    rows: Sequence[Row],
    records: str,
) -> bytes:
    """The 32 bytes of a step or note frame; `records` are its step records as the JSON that is stored, or ''."""
    step = f"{attempt.run_id}/a{attempt.attempt}/s{global_step}/r{dp_rank}"
    content = b"".join(
        [
            b"\x20kiseki-record-v3",
            _text(step),
            struct.pack("<BBI", kind, _STATUS.index(status), len(rows)),
            *(_row(row, attempt) for row in rows),
            _text(records),
        ]
    )
    salt = hmac.digest(secret, content, "sha256")[:16]
    return hashlib.sha256(b"\x20" + salt + content[1:]).digest()


def count_evidence(rows: Sequence[Row], attempt: AttemptInfo) -> tuple[Counts, Counts]:
    """How many rows are known from the forward, the loader, a declaration; and how many are whole, a slice, counted."""
    evidence, matched = [0] * 4, [0] * 4
    for row in rows:
        evidence[_EVIDENCE_CODE[row.evidence or attempt.default_evidence]] += 1
        matched[_MATCHED_CODE[row.matched or attempt.default_matched]] += 1
    return (evidence[1], evidence[2], evidence[3]), (matched[1], matched[2], matched[3])


def _text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return struct.pack("<I", len(encoded)) + encoded


def _row(row: Row, attempt: AttemptInfo) -> bytes:
    default = _EVIDENCE_CODE[attempt.default_tensor_evidence]
    tensors = bytes([default if own is None else _EVIDENCE_CODE[own] for own in tensor_evidence_of(row)])
    evidence = _EVIDENCE_CODE[row.evidence or attempt.default_evidence]
    matched = _MATCHED_CODE[row.matched or attempt.default_matched]
    losses = [segment.loss for segment in row.segments]
    return b"".join(
        (
            bytes((evidence, matched)),
            _text(row.relation) if row.relation else _NO_TEXT,
            b"\x00" if row.loss is None else _loss(row.loss),
            struct.pack("<I", len(losses)),
            bytes(len(losses)) if not any(loss is not None for loss in losses) else b"".join(map(_loss, losses)),
            struct.pack("<I", len(tensors)),
            tensors,
        )
    )


def _loss(value: float | None) -> bytes:
    if value is None:
        return b"\x00"
    try:
        return b"\x01" + struct.pack("<f", value)
    except OverflowError as error:
        raise DamageError(f"a loss of {value} is no 32-bit float") from error
