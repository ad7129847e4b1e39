"""Which fetched micro-batch did the model get? From the forward's tensors to the rows of a step.

- A forward counts when the model is in training mode and gradients are on. (Around a reentrant activation checkpoint
  the first forward has them off; its repetition in the backward counts instead.)
- It consumes the fetched micro-batch that it was given: the very tensor (and a few tokens of each sequence, lest it was
  changed behind torch's back), else equal tokens, else the very tensor though changed in place; then what the forward
  got is what is exported. Fetched micro-batches that no forward gets are not exported.
- A second forward of the same micro-batch in one step (activation checkpointing, SAM) consumes nothing more.
- A forward that got none of them is a dry run as long as nothing has been consumed; later it makes the step fail, since
  something between loader and model edits the tokens, and going on would lose rows.
- Tokens that exist on a device alone are sent to pinned memory, and the writer thread does all this when they are
  there.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from train_hooks.batches import plain_tensors
from train_hooks.export_format.errors import ExportStopped
from train_hooks.export_format.records import TensorScope
from train_hooks.exporter import LateMicrobatch, StagedMicrobatch
from train_hooks.host_copies import BufferPool, HostCopy, copy_tensor
from train_hooks.snapshots import Snapshot, tokens_digest
from train_hooks.tensor_scopes import TensorScopes

__all__ = ["Consumption"]

_MAX_PENDING_BYTES = 64 << 20


@dataclass(slots=True)
class _Step:
    """What happened since the last commit."""

    num_fetched: int = 0
    num_forwards: int = 0
    num_unmatched: int = 0
    num_late: int = 0


class Consumption:
    """The fetched micro-batches of one process, and what became of them."""

    def __init__(self, scopes: Mapping[str, TensorScope] | None = None) -> None:
        self.pool = BufferPool()
        self.scopes = TensorScopes(scopes or {})
        self._pending: list[Snapshot] = []
        self._consumed: list[Snapshot] = []
        self._pending_bytes = 0
        self._step = _Step()
        self._begun = False
        self._num_fetched = 0
        self._num_late = 0
        self._sent: list[tuple[list[tuple[int, int]], Sequence[Tensor]]] = []
        self._late_consumed: dict[bytes, int] = {}
        self._lock = threading.RLock()

    @property
    def num_pending(self) -> int:
        """Micro-batches that were fetched and not consumed."""
        return len(self._pending)

    def fetched(self, snapshot: Snapshot) -> None:
        """Remember a fetched micro-batch. Beyond 64 MiB the oldest are forgotten, as never to be used."""
        with self._lock:
            self._step.num_fetched += 1
            self._num_fetched += 1
            snapshot.number = self._num_fetched
            self._pending.append(snapshot)
            self._pending_bytes += snapshot.size_bytes
            while self._pending_bytes > _MAX_PENDING_BYTES and len(self._pending) > 1 and not self._num_late:
                self._remove(self._pending[0])

    def forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, strict: bool) -> LateMicrobatch | None:
        """A counting forward: what is to be staged for it, if anything. strict: compare every byte, raise if in doubt."""
        with self._lock:
            self._step.num_forwards += 1
            if self._pending and not strict:  # the usual case, told fast
                oldest = self._pending[0]
                tokens = oldest.sources[oldest.name]
                for value in (*args, *kwargs.values()):
                    if value is tokens and oldest.is_untouched():
                        self._take(oldest)
                        return oldest
            fed = plain_tensors((args, kwargs))
            integers = [tensor for tensor in fed if not tensor.is_floating_point() and tensor.ndim]
            on_cpu = [tensor for tensor in integers if tensor.is_cpu]
            found = self._same_tensor(integers, strict=strict)
            if found is None and self._again(integers):
                return None
            found = found or self._equal(self._pending, on_cpu)
            if found is not None:
                if strict:
                    _check_named(found, kwargs)
                return self._consume(found, fed)
            found = self._changed_in_place(on_cpu if strict else integers)
            if found is not None:
                return self._consume(found, fed)
            if self._equal(self._consumed, on_cpu) is not None:
                return None
            late = [tensor for tensor in integers if not tensor.is_cpu and self._plausible(tensor)]
            if late and self._pending:
                return self._send(late)
            self._unmatched(any(self._plausible(tensor) for tensor in integers), strict=strict)
            return None

    def oldest(self, num_microbatches: int) -> list[Snapshot]:
        """Consume the oldest ones, whatever a forward got."""
        with self._lock:
            if num_microbatches > len(self._pending):
                raise ExportStopped(
                    f"expected {num_microbatches} fetched micro-batches, found {len(self._pending)}; fetch them from "
                    "the wrapped loader first"
                )
            chosen = self._pending[:num_microbatches]
            for snapshot in chosen:
                snapshot.counted()
                self._take(snapshot)
            return chosen

    def forget_pending(self) -> None:
        """Fetched micro-batches that are not consumed yet never will be."""
        with self._lock:
            self._pending.clear()
            self._pending_bytes = 0

    def end_step(self, global_step: int, *, trained: bool) -> LateMicrobatch | None:
        """The step is over: raises ExportStopped where its rows cannot be all. Gives back what else is to be staged."""
        with self._lock:
            step, self._step, self._sent = self._step, _Step(), []
            consumed = []
            for snapshot in self._consumed:
                snapshot.forget_sources()
                consumed.append(snapshot.number)
            self._consumed = []
            self._check(global_step, step, len(consumed) + step.num_late, trained=trained)
            if step.num_late:
                return _EndOfLateStep(self, global_step, consumed, trained)
            if self._pending:
                self._forget_skipped(consumed)
            return None

    @staticmethod
    def _check(global_step: int, step: _Step, num_consumed: int, *, trained: bool) -> None:
        if step.num_unmatched:
            raise ExportStopped(
                f"step {global_step}: {step.num_unmatched} of {step.num_forwards} forwards got tokens that the wrapped "
                "loader did not yield, so the export would lack them; wrap the loader after whatever edits the tokens, "
                "fetch a micro-batch anew for each step that uses it, and put forwards that train nothing into "
                "`with hook.paused():`"
            )
        if trained and not num_consumed and (step.num_forwards or step.num_fetched):
            raise ExportStopped(
                f"step {global_step}: expected forwards of fetched micro-batches, found {step.num_forwards} forwards in "
                f"training mode and {step.num_fetched} fetched; attach to the outermost callable in training mode, "
                "feed it what hook.wrap(loader) yields, or call hook.consume(n) where no forward sees whole sequences"
            )

    def _remove(self, snapshot: Snapshot) -> None:
        self._pending.remove(snapshot)
        self._pending_bytes -= snapshot.size_bytes

    def _take(self, snapshot: Snapshot) -> None:
        self._remove(snapshot)
        self._consumed.append(snapshot)
        self._begun = True

    def _consume(self, found: Snapshot, fed: Sequence[Any]) -> Snapshot:
        found.refresh(fed)
        self._take(found)
        return found

    def _same_tensor(self, fed: Sequence[Tensor], *, strict: bool) -> Snapshot | None:
        for snapshot in self._pending:
            for tensor in fed:
                if snapshot.could_be(tensor) and snapshot.same_tensor(tensor):
                    if not tensor.is_cpu:
                        if strict:
                            return None
                    elif not (snapshot.equals(tensor) if strict else snapshot.looks_like(tensor)):
                        continue
                    snapshot.fed_as(tensor)
                    return snapshot
        return None

    def _equal(self, among: Sequence[Snapshot], fed: Sequence[Tensor]) -> Snapshot | None:
        for snapshot in among:
            for tensor in fed:
                if not (snapshot.on_cpu and snapshot.could_be(tensor) and snapshot.looks_like(tensor)):
                    continue
                if snapshot.equals(tensor):
                    if among is not self._consumed:
                        snapshot.fed_as(tensor)
                    return snapshot
        return None

    def _again(self, fed: Sequence[Tensor]) -> bool:
        """Whether it is the very tensor of a forward of this step: an equal micro-batch that is to come is another."""
        for snapshot in self._consumed:
            for tensor in fed:
                if snapshot.could_be(tensor) and snapshot.same_tensor(tensor):
                    return not tensor.is_cpu or snapshot.looks_like(tensor)
        return False

    def _changed_in_place(self, fed: Sequence[Tensor]) -> Snapshot | None:
        for snapshot in reversed(self._pending):
            for tensor in fed:
                if snapshot.could_be(tensor) and snapshot.same_tensor(tensor, changed=True):
                    snapshot.copy_again(snapshot.name)
                    snapshot.fed_as(tensor)
                    return snapshot
        return None

    def _plausible(self, fed: Tensor) -> bool:
        return any(snapshot.could_be(fed) for snapshot in (*self._pending, *self._consumed))

    def _unmatched(self, plausible: bool, *, strict: bool) -> None:
        if not (plausible and self._begun):
            return
        self._step.num_unmatched += 1
        if strict:
            raise ExportStopped(
                "the forward got other tokens than the loader yielded; something between loader and model edits them: "
                "wrap the loader after it"
            )

    def _forget_skipped(self, consumed: Sequence[int]) -> None:
        """What was fetched before the oldest micro-batch of this step, and is still there, was left out."""
        if consumed:
            oldest = min(consumed)
            for snapshot in [snapshot for snapshot in self._pending if snapshot.number < oldest]:
                self._remove(snapshot)

    def _send(self, fed: Sequence[Tensor]) -> "_LateForward | None":
        """Send a forward's tokens to the writer thread; None where the very tensors were sent in this step already."""
        identities = [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in fed]
        if identities in [known for known, _ in self._sent]:
            return None
        self._sent.append((identities, fed))  # kept, lest another tensor gets the same address
        self._step.num_late += 1
        self._num_late += 1
        like = next((known for known in self._pending if known.could_be(fed[0])), self._pending[0])
        return _LateForward(self, like, [copy_tensor(tensor, self.pool) for tensor in fed])

    def resolve_late(self, copies: Sequence[HostCopy]) -> Snapshot | None:
        """On the writer thread: what the forward behind these copies consumed; None for a dry run or a repetition."""
        fed = [copy.tensor() for copy in copies]
        with self._lock:
            self._num_late -= 1
            pending = list(self._pending)
        for snapshot in pending:
            snapshot.wait()  # without the lock: training must not wait for a device
            if self._equal([snapshot], fed) is not None:
                with self._lock:
                    self._remove(snapshot)
                    self._begun = True
                self._late_consumed[snapshot.digest()] = snapshot.number
                return snapshot
        if self._begun and not any(tokens_digest(tensor) in self._late_consumed for tensor in fed):
            raise ExportStopped(
                "a forward got tokens that the wrapped loader did not yield, so the export would lack them; wrap the "
                "loader after whatever edits the tokens, or put forwards that train nothing into `with hook.paused():`"
            )
        return None

    def end_late_step(self, global_step: int, consumed: Sequence[int], *, trained: bool) -> None:
        """On the writer thread: all forwards of the step are resolved."""
        late, self._late_consumed = list(self._late_consumed.values()), {}
        self._check(global_step, _Step(num_forwards=1), len(consumed) + len(late), trained=trained)
        with self._lock:
            self._forget_skipped([*consumed, *late])


def _check_named(snapshot: Snapshot, kwargs: Mapping[str, Any]) -> None:
    """Cross-check of what the forward got under the loader's name for it."""
    named = {name: value for name, value in kwargs.items() if isinstance(value, Tensor)}
    different = snapshot.differing(named)
    if different is not None:
        raise ExportStopped(
            f"the forward got another {different!r} than the loader yielded; wrap the loader after whatever edits it"
        )


class _LateForward:
    """A forward whose tokens are on their way from a device."""

    def __init__(self, consumption: Consumption, like: Snapshot, copies: Sequence[HostCopy]) -> None:
        self._consumption, self._copies = consumption, copies
        self.num_slots = like.num_slots
        self.size_bytes = like.size_bytes + sum(copy.buffer.nbytes for copy in copies)

    def resolve(self) -> StagedMicrobatch | None:
        found = self._consumption.resolve_late(self._copies)
        for copy in self._copies:
            self._consumption.pool.give(copy)
        return None if found is None else found.resolve()


class _EndOfLateStep:
    """Stands behind the last forward of a step that has late ones, to check that the step is whole."""

    num_slots = 0
    size_bytes = 0

    def __init__(self, consumption: Consumption, global_step: int, consumed: Sequence[int], trained: bool) -> None:
        self._consumption, self._global_step, self._consumed, self._trained = (
            consumption, global_step, consumed, trained,
        )  # fmt: skip

    def resolve(self) -> StagedMicrobatch | None:
        self._consumption.end_late_step(self._global_step, self._consumed, trained=self._trained)
        return None
