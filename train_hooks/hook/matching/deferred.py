"""Forwards whose tensors are on a device: sent to pinned memory without waiting, and matched on the writer thread.

1. `copies_to_match` starts the copies when the forward begins. `DeferredForward` is staged in the place of what it consumed.
2. The writer thread comes to it, waits for the copies, and has the consumption match them.
3. `EndOfDeferredStep` is staged behind the last forward of the step. It raises where the step is not whole.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from train_hooks.hook.export.staging import StagedMicrobatch
from train_hooks.hook.matching.consumed import ConsumedRows
from train_hooks.hook.matching.step_state import (
    ForwardTensor,
    StepState,
    TensorKey,
    base_name,
    can_hold_tokens,
    tensor_key,
)
from train_hooks.hook.tensors.host_copies import BufferPool, HostCopy, copy_tensor
from train_hooks.hook.tensors.snapshots import Snapshot

__all__ = ["DeferredForward", "EndOfDeferredStep", "copies_to_match"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
NamedCopy = tuple[str | None, HostCopy, TensorKey]


class DeferredMatching(Protocol):
    """The consumption that they belong to. Both methods are called on the writer thread."""

    pool: BufferPool

    def match_deferred(
        self, step: StepState, tensors: Sequence[ForwardTensor], *, training: bool
    ) -> list[ConsumedRows]:
        """What a forward consumed that got these."""

    def end_deferred_step(self, step: StepState, global_step: int, *, trained: bool) -> None:
        """All forwards of the step are matched. Raises Mismatch where its rows cannot be all."""


def copies_to_match(
    tensors: Iterable[tuple[str | None, Tensor]], like: Snapshot | None, pool: BufferPool
) -> list[NamedCopy]:
    """Copies of the tensors that may be a fetched micro-batch's: by dtype, or by a name or size that `like` has."""
    names = {base_name(name) for name in (like.copies if like else ())}
    sizes = {math.prod(copy.shape) for copy in like.copies.values()} if like else set()
    return [
        (name, copy_tensor(tensor, pool), tensor_key(tensor))
        for name, tensor in tensors
        if can_hold_tokens(tensor) or (name and base_name(name) in names) or tensor.numel() in sizes
    ]


class DeferredForward:
    """A forward whose tensors are on their way from a device. Implements `DeferredMicrobatch`."""

    must_resolve = True

    def __init__(
        self, consumption: DeferredMatching, step: StepState, copies: Sequence[NamedCopy], *, training: bool
    ) -> None:
        self._consumption, self._step, self._copies, self._training = consumption, step, copies, training
        self.declared: dict[str, HostCopy] = {}
        num_rows = [copy.shape[0] for _, copy, _ in copies if len(copy.shape) > 1 and copy.dtype in _INTEGERS]
        self.num_slots = num_rows[0] if num_rows else 1
        self.size_bytes = sum(copy.buffer.nbytes for _, copy, _ in copies)

    def resolve(self) -> list[StagedMicrobatch]:
        """What it consumed, as arrays. Waits for the copies."""
        tensors = [ForwardTensor(name, copy.tensor(), key) for name, copy, key in self._copies]
        consumed = self._consumption.match_deferred(self._step, tensors, training=self._training)
        self.release()
        if consumed:
            consumed[-1].declared.update(self.declared)
        elif self.declared and self._step.consumed:
            self._step.consumed[-1].add_declared(self.declared)  # of what it repeats, which has arrays already
        return [microbatch for each in consumed for microbatch in each.resolve()]

    def release(self) -> None:
        """Its copies are not needed any more."""
        for _, copy, _ in self._copies:
            if not copy.in_flight:
                self._consumption.pool.give(copy)
        self._copies = ()


class EndOfDeferredStep:
    """Comes after the last forward of a step with deferred ones, and checks that the step is whole."""

    must_resolve = True
    num_slots = 0
    size_bytes = 0

    def __init__(self, consumption: DeferredMatching, step: StepState, global_step: int, trained: bool) -> None:
        self._consumption, self._step, self._global_step, self._trained = consumption, step, global_step, trained

    def resolve(self) -> list[StagedMicrobatch]:
        """No micro-batch. Raises Mismatch."""
        self._consumption.end_deferred_step(self._step, self._global_step, trained=self._trained)
        return []

    def release(self) -> None:
        """Nothing is held."""
