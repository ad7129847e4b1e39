"""Micro-batches that are staged for the step in progress: as arrays, or deferred to the writer thread."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.errors import RowError
from train_hooks.export_format.records import Evidence, Matched, RunInfo, Segment

__all__ = ["DeferredMicrobatch", "Staged", "StagedMicrobatch", "check_shapes", "wrong_shape_text"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StagedMicrobatch:
    """A micro-batch as the forward call got it, owned by the exporter.

    tokens: integers [num_slots, length], of a length that the run may hold; tensors: name → [num_slots, …];
    batch_tensors: name → tensor of any shape that belongs to the micro-batch as a whole, kept in the row of slot 0;
    segments: one tuple a slot, or () where the documents are unknown; sample_index: one a slot, or None;
    sample_start: where each row begins in its sample, where samples are cut into rows; loss: mean loss of each
    sequence, or None; segment_losses: of each segment of each sequence, or None; tokens_key: name of the token
    tensor, so that its dtype is kept as well; dtypes: name → torch dtype of tensors whose bits are given as integers,
    since numpy lacks it; evidence, matched, relation: how the tokens are known, where it is not as the attempt's
    defaults say; tensor_evidence: the same of tensors, by name; release: called on the writer thread when the arrays
    are not needed any more.
    """

    tokens: npt.NDArray[np.integer]
    tensors: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    batch_tensors: Mapping[str, npt.NDArray[np.generic]] = field(default_factory=dict)
    segments: Sequence[Sequence[Segment]] = ()
    sample_index: Sequence[int] | None = None
    sample_start: Sequence[int] | None = None
    loss: Sequence[float | None] | None = None
    segment_losses: Sequence[Sequence[float | None]] | None = None
    dtypes: Mapping[str, str] = field(default_factory=dict)
    evidence: Evidence | None = None
    matched: Matched | None = None
    relation: str | None = None
    tensor_evidence: Mapping[str, Evidence] = field(default_factory=dict)
    tokens_key: str | None = None
    release: Callable[[], None] | None = None

    @property
    def num_slots(self) -> int:
        """Sequences in it."""
        return len(self.tokens)

    @property
    def size_bytes(self) -> int:
        """Memory that it holds, roughly."""
        arrays = [self.tokens, *self.tensors.values(), *self.batch_tensors.values()]
        return sum(array.nbytes for array in arrays) + 256 * len(self.segments)


class DeferredMicrobatch(Protocol):
    """A micro-batch whose arrays are made by the writer thread, as when a device still copies them."""

    num_slots: int
    size_bytes: int
    must_resolve: bool
    """Whether `resolve` must be called even where its step is not written, since others depend on it."""

    def release(self) -> None:
        """Instead of `resolve`: it is not needed."""

    def resolve(self) -> list[StagedMicrobatch]:
        """On the writer thread, once, in the order of staging: no micro-batch, one, or several.

        Raises Mismatch where they are not what the forward got.
        """


Staged = StagedMicrobatch | DeferredMicrobatch


def wrong_shape_text(run: RunInfo, expected: str, found: Sequence[int]) -> str:
    """What is wrong with tokens that do not have the run's shape.

    expected: the text up to what was found, with {} in the place of the length.
    """
    length = f"1 to {run.sequence_length}" if run.shorter_rows else str(run.sequence_length)
    shorter = 0 < found[-1] < run.sequence_length and not run.shorter_rows
    return (
        f"expected {expected.format(length)} {list(found)}; the run was attached with sequence_length={run.sequence_length}"
        + (", and with shorter_rows=True it would hold shorter ones" if shorter else "")
    )


def check_shapes(microbatch: StagedMicrobatch, run: RunInfo) -> None:
    """Raises RowError for a shape or dtype that the run cannot hold; cheap enough for the training thread."""
    tokens = microbatch.tokens
    if tokens.ndim != 2 or not run.accepts_length(tokens.shape[1]) or tokens.dtype.kind not in "iu":
        raise RowError(
            wrong_shape_text(run, f"integer tokens of shape [micro-batch, {{}}], found {tokens.dtype}", tokens.shape)
        )
    num_slots = tokens.shape[0]
    for name, values in (
        ("segments", microbatch.segments or None),
        ("sample_index", microbatch.sample_index),
        ("sample_start", microbatch.sample_start),
        ("loss", microbatch.loss),
        ("segment_losses", microbatch.segment_losses),
    ):
        if values is not None and len(values) != num_slots:
            raise RowError(f"{name}: expected one for each of {num_slots} sequences, found {len(values)}")
    for name, value in microbatch.tensors.items():
        if value.ndim < 1 or value.shape[0] != num_slots or value.dtype.hasobject:
            raise RowError(
                f"tensor {name!r}: expected numbers of shape [{num_slots}, …], found {value.dtype} {list(value.shape)}"
            )
