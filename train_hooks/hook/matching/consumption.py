"""Which fetched micro-batches were consumed? From the forward's tensors to the rows of a step.

- A forward counts when gradients are on and the model is in training mode. (Around a reentrant activation checkpoint the
  first forward has them off; its repetition in the backward counts instead.) In evaluation mode it counts only if it gets
  a fetched micro-batch.
- Each is accounted for: its tokens are a fetched micro-batch, or whole rows of some (`match_tokens` has the forms), every byte
  compared, or what a forward of this step got already (activation checkpointing, SAM), which consumes nothing more.
- Whatever else it gets makes the step fail, since the record would lack it. Only before the first fetch it is a dry run.
- What the trainer changed in place since the fetch is copied again: recorded is what the forward got. So it is with other
  tensors that the forward gets under the loader's name for them.
- Tensors that exist on a device alone are sent to pinned memory, and the writer thread does all this when they are there.
- Fetched micro-batches that no forward gets are not recorded.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from train_hooks.export_format.errors import ExportStopped, InputError, Mismatch
from train_hooks.export_format.records import TensorScope
from train_hooks.hook.export.staging import DeferredMicrobatch
from train_hooks.hook.matching.consumed import ConsumedRows
from train_hooks.hook.matching.counting import CountedMicrobatch, observe_forward
from train_hooks.hook.matching.deferred import DeferredForward, EndOfDeferredStep, copies_to_match
from train_hooks.hook.matching.forward_recorder import ForwardRecorder
from train_hooks.hook.matching.match_tokens import RowMatch
from train_hooks.hook.matching.matcher import ForwardMatcher
from train_hooks.hook.matching.pending import PendingMicrobatches
from train_hooks.hook.matching.step_state import ForwardTensor, StepState, base_name, can_hold_tokens, tensor_key
from train_hooks.hook.matching.unchanged import find_unchanged
from train_hooks.hook.tensors.batches import forward_tensors
from train_hooks.hook.tensors.host_copies import BufferPool, copy_tensor
from train_hooks.hook.tensors.scopes import TensorScopes
from train_hooks.hook.tensors.snapshots import Snapshot

__all__ = ["Consumption"]

_ADVICE = (
    "wrap the loader after whatever edits or cuts its micro-batches, or record what the forward gets: "
    'hook.wrap(loader, record="forward"); put forwards that train nothing into `with hook.paused():`'
)


class Consumption:
    """The fetched micro-batches of one process, and what became of them.

    parameters: names of the positional parameters of the model's forward. counting: forwards consume nothing,
    `consume_oldest` does, and they are only observed. is_wanted: which tensors of a forward are recorded, with
    `record="forward"`. accepts_length: whether the run can hold rows of a length.
    """

    def __init__(
        self,
        scopes: Mapping[str, TensorScope] | None = None,
        *,
        max_fetched_bytes: int = 256 << 20,
        accepts_length: Callable[[int], bool] = lambda length: False,  # noqa: ARG005
    ) -> None:
        self.pool = BufferPool()
        self.scopes = TensorScopes(scopes or {})
        self.parameters: Sequence[str] = ()
        self.counting = False
        self.is_wanted: Callable[[str], bool] = lambda name: True  # noqa: ARG005
        self._pending = PendingMicrobatches(max_fetched_bytes)
        self._lock = self._pending.lock
        self._token_names: set[str] = set()
        self._recorded_tokens_name: str | None = None
        self._matcher = ForwardMatcher(
            self._pending, self.pool, self.scopes, token_names=self._token_names, accepts_length=accepts_length
        )
        self._recorder = ForwardRecorder(self._pending, self.pool, self.scopes, accepts_length)
        self._step = StepState()
        self._num_fetched = 0
        self._num_deferred = 0
        self._forget_after: tuple[int, int] | None = None

    @property
    def num_pending(self) -> int:
        """Fetched micro-batches of which some row was not consumed."""
        return len(self._pending.by_number)

    def fetched(self, snapshot: Snapshot) -> None:
        """Remember a fetched micro-batch. Beyond `max_fetched_bytes` the oldest are set aside, as never to be used."""
        with self._lock:
            self._step.num_fetched += 1
            self._num_fetched += 1
            snapshot.number = self._num_fetched
            self._token_names.add(base_name(snapshot.tokens_name))
            if snapshot.documents_only:
                self._recorded_tokens_name = snapshot.tokens_name
            self._pending.add(snapshot)
            if self._pending.size_bytes > self._pending.max_fetched_bytes and not self._num_deferred:
                self._pending.set_oldest_aside()  # where none is still to be compared

    def forward(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool = True
    ) -> Sequence[DeferredMicrobatch]:
        """A forward with gradients: what is to be staged for it. training: whether it counts whatever it gets."""
        with self._lock:
            if not self.counting:
                unchanged = find_unchanged(self._pending, self.parameters, args, kwargs)
                if unchanged is not None:
                    return (self._consume_unchanged(*unchanged),)
            with torch._C._DisableFuncTorch():  # memory can be looked at inside of its transforms as well
                tensors = forward_tensors(args, kwargs, self.parameters)
                if self.counting:
                    observe_forward(tensors, self._step, self._pending, self.pool)
                    return ()
                return self._account_for(tensors, training=training)

    def _account_for(
        self, tensors: Sequence[tuple[str | None, Tensor]], *, training: bool
    ) -> Sequence[DeferredMicrobatch]:
        """Any other forward than of one micro-batch as it was fetched."""
        self._step.num_forwards += training
        is_dry_run = not self._num_fetched
        if is_dry_run:
            return ()
        if self._recorded_tokens_name is not None:
            return self._record(tensors, self._recorded_tokens_name) if training else ()
        if any(not tensor.is_cpu and can_hold_tokens(tensor) for _, tensor in tensors):
            return self._defer(tensors, training=training)
        return self._match_now(tensors, training=training)

    def _consume_unchanged(self, snapshot: Snapshot, seen: Collection[str]) -> ConsumedRows:
        """A forward got these tensors of a micro-batch as they were fetched."""
        match = RowMatch(snapshot)
        consumed = ConsumedRows(match, self.pool, self.scopes, self._lock)
        if len(seen) < len(snapshot.sources):
            consumed.unseen = [name for name in snapshot.sources if name not in seen]
        step = self._step
        step.num_forwards += 1
        step.staged.append(consumed)
        step.consumed.append(consumed)
        step.unkeyed_tensors.append(snapshot.sources[snapshot.tokens_name])
        self._pending.consume(match, step)
        return consumed

    def _record(self, tensors: Sequence[tuple[str | None, Tensor]], tokens_name: str) -> Sequence[DeferredMicrobatch]:
        """`record="forward"`: the forward's own tensors are recorded."""
        recorded = self._recorder.record(tensors, tokens_name, self._step, self.is_wanted)
        return () if recorded is None else (recorded,)

    def _defer(self, tensors: Sequence[tuple[str | None, Tensor]], *, training: bool) -> Sequence[DeferredMicrobatch]:
        """The tensors are on a device: have the writer thread match them."""
        step, pending = self._step, self._pending.by_number
        if not pending and not step.staged:
            if training:
                step.mismatches.append("a forward got tokens that the wrapped loader did not yield")
            return ()
        copies = copies_to_match(tensors, next(iter(pending.values()), None), self.pool)
        step.known_tensors.update({tensor_key(tensor): tensor for _, tensor in tensors if can_hold_tokens(tensor)})
        step.num_deferred += 1
        self._num_deferred += 1
        deferred = DeferredForward(self, step, copies, training=training)
        step.staged.append(deferred)
        return (deferred,)

    def _match_now(
        self, tensors: Sequence[tuple[str | None, Tensor]], *, training: bool
    ) -> Sequence[DeferredMicrobatch]:
        step = self._step
        on_cpu = [ForwardTensor(name, tensor, tensor_key(tensor)) for name, tensor in tensors if tensor.is_cpu]
        consumed, mismatch = self._matcher.match(on_cpu, step)
        if mismatch is not None and training:
            step.mismatches.append(mismatch)
        step.staged.extend(consumed)
        return consumed

    def match_deferred(
        self, step: StepState, tensors: Sequence[ForwardTensor], *, training: bool
    ) -> list[ConsumedRows]:
        """On the writer thread: what a forward consumed whose tensors were on a device."""
        with self._lock:
            pending = list(self._pending.by_number.values())
        for snapshot in pending:
            snapshot.wait()  # without the lock: training must not wait for a device
        with self._lock:
            self._num_deferred -= 1
            self._matcher.may_wait = True
            consumed, mismatch = self._matcher.match(tensors, step)
            self._matcher.may_wait = False
            if mismatch is not None and training:
                step.mismatches.append(mismatch)
            return consumed

    def consume_oldest(self, num_microbatches: int) -> Sequence[DeferredMicrobatch]:
        """Consume the oldest ones, whatever a forward got. What is older than the newest consumed was passed over."""
        with self._lock:
            newest = self._pending.newest_consumed
            pending = [snapshot for snapshot in self._pending.by_number.values() if snapshot.number > newest]
            if num_microbatches > len(pending):
                raise ExportStopped(
                    f"expected {num_microbatches} fetched micro-batches, found {len(pending)}; fetch them from "
                    "the wrapped loader first"
                )
            counted = []
            for snapshot in pending[:num_microbatches]:
                self._pending.consume(RowMatch(snapshot), self._step)
                counted.append(CountedMicrobatch(snapshot, self.pool, self.scopes, self._lock))
            self._step.consumed.extend(counted)
            self._step.staged.extend(counted)
            return counted

    def forget_pending(self) -> None:
        """Fetched micro-batches that are not consumed yet never will be, but for those that are still compared."""
        with self._lock:
            if self._num_deferred:
                self._forget_after = (self._step.serial, self._num_fetched)
            else:
                self._pending.forget(list(self._pending.by_number.values()))

    def discard(self) -> None:
        """The forwards since the last commit trained nothing: their micro-batches may be fed again."""
        with self._lock:
            step, self._step = self._step, StepState()
            self._step.num_fetched = step.num_fetched
            self._num_deferred -= step.num_deferred
            self._pending.give_back(step)
        for staged in step.staged:
            staged.release()

    def interrupted(self) -> None:
        """Something was raised while a forward was looked at, so that nobody knows whether it is recorded."""
        self._step.mismatches.append("a forward was interrupted while it was being recorded")

    def declare(self, tensors: Mapping[str, Tensor]) -> None:
        """The last forward's loss was computed from these. Raises InputError where there is none of as many rows."""
        with self._lock:
            if not self._step.staged:
                raise InputError(
                    "trained_on: expected a forward of a fetched micro-batch since the last commit, found none; call it "
                    "after the forward"
                )
            last = self._step.staged[-1]
            for name, tensor in tensors.items():
                if name in self._token_names:
                    raise InputError(
                        f"trained_on: expected labels, masks and the like, found the tokens, {name!r}, which are what the "
                        'forward got; where that is something else than was fetched: hook.wrap(loader, record="forward")'
                    )
                if tensor.ndim < 1 or tensor.shape[0] != last.num_slots:
                    raise InputError(
                        f"trained_on: expected {name!r} with an item for each of {last.num_slots} rows of the last forward, "
                        f"found shape {list(tensor.shape)}"
                    )
            last.declared.update({name: copy_tensor(tensor, self.pool) for name, tensor in tensors.items()})

    def end_step(self, global_step: int, *, trained: bool) -> DeferredMicrobatch | None:
        """The step is over: raises Mismatch where its rows cannot be all. Gives back what else is to be staged."""
        with self._lock:
            step, self._step = self._step, StepState()
            step.forget_tensors()
            if step.num_deferred:
                return EndOfDeferredStep(self, step, global_step, trained)
            self._end(step, global_step, trained=trained)
            return None

    def end_deferred_step(self, step: StepState, global_step: int, *, trained: bool) -> None:
        """On the writer thread: all forwards of the step are matched."""
        with self._lock:
            self._end(step, global_step, trained=trained)

    def _end(self, step: StepState, global_step: int, *, trained: bool) -> None:
        _expect_whole_step(global_step, step, trained=trained)
        if self._forget_after is not None and not self._num_deferred:
            serial, last_number = self._forget_after
            if step.serial >= serial:
                self._forget_after = None
                pending = self._pending.by_number
                self._pending.forget([snapshot for number, snapshot in pending.items() if number <= last_number])
        self._pending.end_step(step)


def _expect_whole_step(global_step: int, step: StepState, *, trained: bool) -> None:
    if step.mismatches:
        raise Mismatch(
            f"step {global_step}: {len(step.mismatches)} of {step.num_forwards} forwards got something else than fetched "
            f"micro-batches, so the record would lack it: {step.mismatches[0]}. {_ADVICE}"
        )
    if trained and not (step.used or step.num_recorded) and (step.num_forwards or step.num_fetched):
        raise Mismatch(
            f"step {global_step}: expected forwards of fetched micro-batches, found {step.num_forwards} forwards in "
            f"training mode and {step.num_fetched} fetched; attach to the outermost callable in training mode, "
            "feed it what hook.wrap(loader) yields, or call hook.consume(n) where no forward sees whole sequences"
        )
