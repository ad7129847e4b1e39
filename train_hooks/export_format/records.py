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

__all__ = ["AttemptInfo", "Row", "RunInfo", "Segment", "SequenceAddress", "StepRecord", "StepStatus", "TensorRecord"]

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Contiguous part of one document inside one packed sequence; all numbers count tokens.

    document_id: empty where the document is unknown. document_token_offset: -1 where its place in the document is (imports).
    """

    start: int
    length: int
    source: str
    document_id: str
    document_token_offset: int


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
    """One further tensor of the forward call, for one row, as `tensors.encode` stores it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    encoding: str
    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One packed sequence as training consumed it."""

    address: SequenceAddress
    tokens: npt.NDArray[np.unsignedinteger]
    segments: tuple[Segment, ...]
    tensors: tuple[TensorRecord, ...]
    sample_index: int | None
    status: StepStatus
    loss: float | None
    leaf: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRecord:
    """What a writer said of a step beside its rows: metrics, or a gap and its reason."""

    global_step: int
    kind: str
    unix_time_s: float
    values: Mapping[str, float] = field(default_factory=dict)
    text: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunInfo:
    """`run.json`: all that is true of the run in every attempt.

    format_version: 1, every row has sequence_length tokens; 2, that is the most that a row has, and 1 the fewest.
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

    @property
    def shorter_rows(self) -> bool:
        """Whether rows may be shorter than sequence_length."""
        return self.format_version > 1

    def may_hold(self, num_tokens: int) -> bool:
        """Whether a row may have so many tokens."""
        return num_tokens == self.sequence_length or (self.shorter_rows and 1 <= num_tokens < self.sequence_length)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptInfo:
    """`attempt.json`: one process-group lifetime. It contributes the steps after `resume_step`.

    run_sha256, parent_sha256: SHA-256 of `run.json` and of the parent's `attempt.json` as this attempt found them.
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
