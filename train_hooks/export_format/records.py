"""The records that travel between the trainer, the files and the readers.

All are frozen. Tokens are numpy arrays of the run's token dtype; a reader hands them out read-only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.errors import InputError

__all__ = [
    "FORMAT_VERSION",
    "AttemptInfo",
    "Evidence",
    "EvidenceDefaults",
    "Matched",
    "Row",
    "RowLoss",
    "RunInfo",
    "Segment",
    "SequenceAddress",
    "StepRecord",
    "StepStatus",
    "TensorRecord",
    "TensorScope",
    "in_32_bits",
]

FORMAT_VERSION = 3
"""The version in which new attempts are written. Versions 1 and 2 are read."""

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_ADDRESS = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})/a(\d{1,9})/s(\d{1,15})/r(\d{1,9})/m(\d{1,9})/q(\d{1,9})", re.ASCII
)


class StepStatus(StrEnum):
    """What became of a committed step."""

    APPLIED = "applied"
    SKIPPED_UPDATE = "skipped_update"
    SKIPPED_DATA = "skipped_data"
    RERUN = "rerun"


class Evidence(StrEnum):
    """How a recorded tensor is known: seen in the forward call, as the loader yielded it, or handed over as what was
    used."""

    FORWARD = "forward"
    LOADER = "loader"
    DECLARED = "declared"


class Matched(StrEnum):
    """How a row was tied to a forward: all of it, a declared part of it, or a forward of which the input was not
    seen."""

    WHOLE = "whole"
    SLICE = "slice"
    COUNT = "count"


class TensorScope(StrEnum):
    """Whether a tensor has one item for each row, or belongs to the micro-batch as a whole."""

    ROW = "row"
    MICROBATCH = "microbatch"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvidenceDefaults:
    """What the rows of an attempt say of evidence where they say nothing themselves. None: it is not recorded.

    evidence: of the tokens. tensor_evidence: of all other tensors.
    """

    evidence: Evidence | None = None
    tensor_evidence: Evidence | None = None
    matched: Matched | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Contiguous part of one document inside one packed sequence; all numbers count tokens.

    document_id: empty where the document is unknown. document_token_offset: -1 where its place in the document is
    (imports). loss: mean loss of the segment, where the trainer gave it.
    """

    start: int
    length: int
    source: str
    document_id: str
    document_token_offset: int
    loss: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class SequenceAddress:
    """Where a packed sequence stands, for ever. Text form `run/a1/s120/r3/m0/q5`."""

    run_id: str
    attempt: int
    global_step: int
    dp_rank: int
    microbatch: int
    slot: int

    def __str__(self) -> str:
        return f"{self.run_id}/a{self.attempt}/s{self.global_step}/r{self.dp_rank}/m{self.microbatch}/q{self.slot}"

    @classmethod
    def parse(cls, text: str) -> "SequenceAddress":
        """Read the text form. Raises InputError where it is not one."""
        match = _ADDRESS.fullmatch(text.strip())
        if match is None:
            raise InputError(f"expected a sequence address such as run/a1/s120/r3/m0/q5, found {text!r}")
        attempt, step, dp_rank, microbatch, slot = (int(number) for number in match.groups()[1:])
        return cls(
            run_id=match[1], attempt=attempt, global_step=step, dp_rank=dp_rank, microbatch=microbatch, slot=slot
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRecord:
    """One tensor of a row beside its tokens, as `tensors.encode_tensor` stores it.

    dtype: numpy's (`<i8`), or the name of a torch dtype that numpy lacks. whole: it belongs to the micro-batch as a
    whole, and is kept in the row of slot 0. evidence: None where the attempt's default holds. In formats 1 and 2
    `whole` is false and the name says both (`microbatch/x`, `x:bfloat16`).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    encoding: str
    data: bytes
    whole: bool = False
    evidence: Evidence | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One packed sequence as training consumed it.

    evidence, matched: None where the attempt's defaults hold. relation:
    how what the forward got differs in form from the tokens; None: it does not. format_version: that of its attempt.
    """

    address: SequenceAddress
    tokens: npt.NDArray[np.unsignedinteger]
    segments: tuple[Segment, ...]
    tensors: tuple[TensorRecord, ...]
    sample_index: int | None
    status: StepStatus
    loss: float | None
    leaf: bytes
    evidence: Evidence | None = None
    matched: Matched | None = None
    relation: str | None = None
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLoss:
    """The loss of a row that was given after its step was written; segments: one for each segment, or None."""

    microbatch: int
    slot: int
    loss: float | None
    segments: tuple[float | None, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """What a writer said of a step beside its rows. kind: `metrics`, `gap` and its reason, or `losses` that came
    late."""

    global_step: int
    kind: str
    unix_time_s: float
    values: Mapping[str, float] = field(default_factory=dict)
    text: str | None = None
    rows: tuple[RowLoss, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """`run.json`: all that is true of the run in every attempt.

    format_version: the version in which the run was begun. shorter_rows: whether rows may have 1 to sequence_length
    tokens; else each has sequence_length.
    """

    run_id: str
    format_version: int
    created_unix_s: float
    sequence_length: int
    token_dtype: str
    vocab_size: int
    tokenizer_file: str | None
    tokenizer_sha256: str | None
    config: Mapping[str, object]
    versions: Mapping[str, str]
    secret_sha256: str | None = None
    shorter_rows: bool = False

    def accepts_length(self, num_tokens: int) -> bool:
        """Whether a row may have so many tokens."""
        return num_tokens == self.sequence_length or (self.shorter_rows and 1 <= num_tokens < self.sequence_length)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptInfo:
    """`attempt.json`: one process-group lifetime. It contributes the steps after `resume_step`.

    run_sha256, parent_sha256: SHA-256 of `run.json` and of the parent's `attempt.json` as this attempt found them.
    format_version: the version that its files are written in. file_sha256: of the file that it was read from.
    default_…: see `EvidenceDefaults`. tensor_scopes: of the tensors that were declared, or that the parent attempt
    decided on.
    """

    run_id: str
    attempt: int
    parent_attempt: int | None
    resume_step: int
    num_writers: int
    claim: str
    started_unix_s: float
    host: str
    config: Mapping[str, object]
    versions: Mapping[str, str]
    run_sha256: str | None = None
    parent_sha256: str | None = None
    default_evidence: Evidence | None = None
    default_tensor_evidence: Evidence | None = None
    default_matched: Matched | None = None
    tensor_scopes: Mapping[str, TensorScope] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION
    file_sha256: str | None = field(default=None, compare=False)


def in_32_bits(value: float | None) -> float | None:
    """A loss as the format keeps it: rounded to a 32-bit float, infinite where it is too large for one."""
    with np.errstate(over="ignore"):
        return None if value is None else float(np.float32(value))
