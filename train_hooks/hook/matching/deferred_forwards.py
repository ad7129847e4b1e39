"""Forwards whose tensors are on their way from a device, and micro-batches that are counted: resolved on the writer thread."""

import threading
from collections.abc import Sequence
from typing import Protocol

import torch

from train_hooks.hook.export.exporter import StagedMicrobatch
from train_hooks.hook.matching.comparisons import seen_in
from train_hooks.hook.matching.consumed import Consumed
from train_hooks.hook.matching.rows import Found
from train_hooks.hook.matching.step_under_way import Fed, Key, Step, key_of
from train_hooks.hook.tensors.host_copies import BufferPool, HostCopy
from train_hooks.hook.tensors.scopes import TensorScopes
from train_hooks.hook.tensors.snapshots import Seen, Snapshot

__all__ = ["Counted", "EndOfLateStep", "LateForward", "LateSeen"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)


class Resolver(Protocol):
    """The consumption that they belong to."""

    pool: BufferPool

    def resolve_late(
        self, step: Step, copies: Sequence[tuple[str | None, HostCopy, Key]], *, training: bool
    ) -> list[Consumed]:
        """What the forward behind these copies consumed."""

    def end_late_step(self, step: Step, global_step: int, *, trained: bool) -> None:
        """All forwards of the step are resolved."""


class Counted(Consumed):
    """A micro-batch that was counted for a forward, whatever that got."""

    def __init__(self, found: Found, pool: BufferPool, scopes: TensorScopes, lock: threading.RLock) -> None:
        super().__init__(found, pool, scopes, lock)
        self.snapshot = found.snapshots[0]

    def resolve(self) -> list[StagedMicrobatch]:
        seen = self.snapshot.seen
        self.counted(seen.resolve(self.snapshot) if isinstance(seen, LateSeen) else seen)
        return super().resolve()


class LateSeen:
    """What a forward got on a device, where micro-batches are counted."""

    def __init__(self, copies: Sequence[tuple[str | None, HostCopy]]) -> None:
        self._copies = copies

    def resolve(self, snapshot: Snapshot) -> Seen | None:
        fed = [copy.tensor() for _, copy in self._copies]
        names = [name for name, _ in self._copies]
        return seen_in(snapshot, [Fed(name, tensor, key_of(tensor)) for name, tensor in zip(names, fed, strict=True)])


class LateForward:
    """A forward whose tensors are on their way from a device."""

    late = True

    def __init__(
        self,
        consumption: Resolver,
        step: Step,
        copies: Sequence[tuple[str | None, HostCopy, Key]],
        *,
        training: bool,
    ) -> None:
        self._consumption, self._step, self._copies, self._training = consumption, step, copies, training
        self.declared: dict[str, HostCopy] = {}
        rows = [copy.shape[0] for name, copy, _ in copies if len(copy.shape) > 1 and copy.dtype in _INTEGERS]
        self.num_slots = rows[0] if rows else 1
        self.size_bytes = sum(copy.buffer.nbytes for _, copy, _ in copies)

    def resolve(self) -> list[StagedMicrobatch]:
        """What it consumed, as arrays."""
        consumed = self._consumption.resolve_late(self._step, self._copies, training=self._training)
        self.release()
        if consumed:
            consumed[-1].declared.update(self.declared)
        elif self.declared and self._step.consumed_parts:
            self._step.consumed_parts[-1].declare_made(self.declared)  # of what it repeats, which has arrays already
        return [microbatch for part in consumed for microbatch in part.resolve()]

    def release(self) -> None:
        """Its copies are not needed any more."""
        for _, copy, _ in self._copies:
            if not copy.late:
                self._consumption.pool.give(copy)
        self._copies = ()


class EndOfLateStep:
    """Stands behind the last forward of a step that has late ones, to check that the step is whole."""

    num_slots = 0
    size_bytes = 0
    late = True

    def __init__(self, consumption: Resolver, step: Step, global_step: int, trained: bool) -> None:
        self._consumption, self._step, self._global_step, self._trained = consumption, step, global_step, trained

    def resolve(self) -> list[StagedMicrobatch]:
        self._consumption.end_late_step(self._step, self._global_step, trained=self._trained)
        return []

    def release(self) -> None:
        """Nothing is held."""
