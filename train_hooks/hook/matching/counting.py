"""Counted micro-batches: `hook.consume(n)` takes the oldest, whatever a forward got, and forwards are only observed.

What a forward is observed to get says how the row is known, and whether it is a part of it. Nothing seen is no error.
"""

import threading
from collections.abc import Sequence

from torch import Tensor

from train_hooks.export_format.records import Matched
from train_hooks.hook.export.staging import StagedMicrobatch
from train_hooks.hook.matching.consumed import ConsumedRows
from train_hooks.hook.matching.match_other_tensors import compare_other_tensors
from train_hooks.hook.matching.match_tokens import RowMatch, match_rows, match_whole
from train_hooks.hook.matching.pending import PendingMicrobatches
from train_hooks.hook.matching.step_state import ForwardTensor, StepState, tensor_key
from train_hooks.hook.tensors.host_copies import BufferPool, HostCopy, copy_tensor
from train_hooks.hook.tensors.scopes import TensorScopes
from train_hooks.hook.tensors.snapshots import Observation, Snapshot, as_array

__all__ = ["CountedMicrobatch", "observe_forward", "observe_whole"]

_MAX_OBSERVED = 8  # micro-batches that a forward is compared with


class CountedMicrobatch(ConsumedRows):
    """A micro-batch that was counted for a forward, whatever that got."""

    def __init__(self, snapshot: Snapshot, pool: BufferPool, scopes: TensorScopes, lock: threading.RLock) -> None:
        super().__init__(RowMatch(snapshot), pool, scopes, lock)
        self.snapshot = snapshot

    def resolve(self) -> list[StagedMicrobatch]:
        observation = self.snapshot.observation
        if isinstance(observation, DeferredObservation):
            observation = observation.resolve(self.snapshot)
        self.note_observation(observation)
        return super().resolve()


class DeferredObservation:
    """What a forward got on a device, in copies that are still being made."""

    def __init__(self, copies: Sequence[tuple[str | None, HostCopy]]) -> None:
        self._copies = copies

    def resolve(self, snapshot: Snapshot) -> Observation | None:
        """Whether this was `snapshot`. Waits for the copies; called on the writer thread."""
        tensors = [(name, copy.tensor()) for name, copy in self._copies]
        return observe_whole(snapshot, [ForwardTensor(name, tensor, tensor_key(tensor)) for name, tensor in tensors])


def observe_forward(
    tensors: Sequence[tuple[str | None, Tensor]], step: StepState, pending: PendingMicrobatches, pool: BufferPool
) -> None:
    """Note in the oldest micro-batch that no forward was observed to get whether this one got it."""
    counted = [staged.snapshot for staged in step.staged]
    unobserved = [snapshot for snapshot in (*counted, *pending.by_number.values()) if snapshot.observation is None]
    unobserved = unobserved[:_MAX_OBSERVED]
    if unobserved and any(not tensor.is_cpu for _, tensor in tensors):
        unobserved[0].observation = DeferredObservation([(name, copy_tensor(tensor, pool)) for name, tensor in tensors])
        return
    on_cpu = [ForwardTensor(name, tensor, tensor_key(tensor)) for name, tensor in tensors if tensor.is_cpu]
    for snapshot in unobserved:
        if snapshot.tokens_ready and (observation := observe_whole(snapshot, on_cpu)) is not None:
            snapshot.observation = observation
            return
    for snapshot in unobserved:
        if snapshot.tokens_ready and _observe_rows(snapshot, on_cpu):
            return


def observe_whole(snapshot: Snapshot, tensors: Sequence[ForwardTensor]) -> Observation | None:
    """How a forward got this micro-batch, if it did."""
    for each in tensors:
        if not each.can_hold_tokens or (match := match_whole(snapshot, as_array(each.tensor))) is None:
            continue
        consumed = ConsumedRows(match, BufferPool(), TensorScopes({}), threading.RLock())
        consumed.note_form(each.tensor)
        compare_other_tensors(consumed, tensors, consumed.pool, alone=False)
        names = [name for name in snapshot.copies if name != snapshot.tokens_name and name not in consumed.unseen]
        return Observation(consumed.matched or Matched.WHOLE, consumed.relation, names)
    return None


def _observe_rows(snapshot: Snapshot, tensors: Sequence[ForwardTensor]) -> bool:
    """Whether a forward got some rows of this micro-batch that none was observed to get before."""
    for each in tensors:
        match = match_rows([snapshot], as_array(each.tensor), free=False) if each.can_hold_tokens else None
        if match is None or match.truncated:
            continue
        rows = {row for _, row in match.rows}
        if rows <= snapshot.observed_rows:
            continue
        snapshot.observed_rows |= rows
        if len(snapshot.observed_rows) == snapshot.num_slots:
            consumed = ConsumedRows(match, BufferPool(), TensorScopes({}), threading.RLock())
            consumed.note_form(each.tensor)
            snapshot.observation = Observation(consumed.matched or Matched.WHOLE, consumed.relation, ())
        return True
    return False
