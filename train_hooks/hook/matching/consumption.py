"""Which fetched micro-batches were consumed? From the forward's tensors to the rows of a step.

- A forward counts when gradients are on and the model is in training mode. (Around a reentrant activation checkpoint the
  first forward has them off; its repetition in the backward counts instead.) In evaluation mode it counts only if it gets
  a fetched micro-batch.
- Each is accounted for: its tokens are a fetched micro-batch, or whole rows of some (`matching` has the forms), every byte
  compared, or what a forward of this step got already (activation checkpointing, SAM), which consumes nothing more.
- Whatever else it gets makes the step fail, since the record would lack it. Only before the first fetch it is a dry run.
- What the trainer changed in place since the fetch is copied again: recorded is what the forward got. So it is with other
  tensors that the forward gets under the loader's name for them.
- Tensors that exist on a device alone are sent to pinned memory, and the writer thread does all this when they are there.
- Fetched micro-batches that no forward gets are not recorded.
"""

import itertools
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from train_hooks.export_format.errors import ExportStopped, InputError, Mismatch
from train_hooks.export_format.records import TensorScope
from train_hooks.hook.export.exporter import LateMicrobatch
from train_hooks.hook.matching.comparisons import (
    compare_others,
    is_tensor_of,
    repeats,
    rows_seen_in,
    seen_in,
    use_of,
    used_in,
)
from train_hooks.hook.matching.consumed import Consumed, Recorded
from train_hooks.hook.matching.deferred_forwards import Counted, EndOfLateStep, LateForward, LateSeen
from train_hooks.hook.matching.rows import Found, all_of, rows_of
from train_hooks.hook.matching.step_under_way import Fed, Key, Step, could_be_tokens, key_of, last_part
from train_hooks.hook.tensors.batches import named_tensors
from train_hooks.hook.tensors.host_copies import BufferPool, HostCopy, copy_tensor
from train_hooks.hook.tensors.scopes import TensorScopes
from train_hooks.hook.tensors.snapshots import Array, Snapshot, as_array, equal_bits

__all__ = ["Consumption"]

_SCALARS = (type(None), bool, int, float, str)
_MAX_CANDIDATES = 64  # fetched micro-batches that a recorded forward is compared with
_MAX_LEFT_OUT = 256  # micro-batches that are kept though later ones were consumed
_MAX_SET_ASIDE = 1 << 17  # rows that are remembered by a hash
_FEW_COLUMNS = 4  # integers with fewer for each row are not taken for tokens that somebody edited
_HASHED = 64  # tokens of a row that was set aside
_ADVICE = (
    "wrap the loader after whatever edits or cuts its micro-batches, or record what the forward gets: "
    'hook.wrap(loader, record="forward"); put forwards that train nothing into `with hook.paused():`'
)


class Consumption:
    """The fetched micro-batches of one process, and what became of them.

    parameters: names of the positional parameters of the model's forward. counting: forwards consume nothing, `oldest`
    does, and they are only compared. wanted: which tensors of a forward are recorded. may_hold: whether rows of a length
    can be recorded.
    """

    def __init__(
        self,
        scopes: Mapping[str, TensorScope] | None = None,
        *,
        max_fetched_bytes: int = 256 << 20,
        may_hold: Callable[[int], bool] = lambda length: False,  # noqa: ARG005
    ) -> None:
        self.pool = BufferPool()
        self.scopes = TensorScopes(scopes or {})
        self.parameters: Sequence[str] = ()
        self.counting = False
        self.wanted: Callable[[str], bool] = lambda name: True  # noqa: ARG005
        self._max_fetched_bytes, self._may_hold = max_fetched_bytes, may_hold
        self._pending: dict[int, Snapshot] = {}
        self._pending_bytes = 0
        self._by_address: dict[int, list[int]] = {}
        self._by_object: dict[int, list[int]] = {}
        self._names: set[str] = set()
        self._documents_of: str | None = None
        self._set_aside: dict[int, None] = {}
        self._step = Step()
        self._num_fetched = 0
        self._newest_consumed = 0
        self._may_wait = False
        self._forget_after: tuple[int, int] | None = None
        self._num_late = 0
        self._lock = threading.RLock()

    @property
    def num_pending(self) -> int:
        """Fetched micro-batches of which some row was not consumed."""
        return len(self._pending)

    def fetched(self, snapshot: Snapshot) -> None:
        """Remember a fetched micro-batch. Beyond `max_fetched_bytes` the oldest are set aside, as never to be used."""
        with self._lock:
            self._step.num_fetched += 1
            self._num_fetched += 1
            snapshot.number = self._num_fetched
            self._names.add(snapshot.name.rpartition(".")[2])
            if snapshot.documents_only:
                self._documents_of = snapshot.name
            self._remember(snapshot)
            if self._pending_bytes > self._max_fetched_bytes and not self._num_late:
                self._set_oldest_aside()

    def forward(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool = True
    ) -> Sequence[LateMicrobatch]:
        """A forward with gradients: what is to be staged for it. training: whether it counts whatever it gets."""
        with self._lock:
            if self._pending and not self.counting:
                consumed = self._fetched_as_it_is(args, kwargs)
                if consumed is not None:
                    return (consumed,)
            return self._any_forward(args, kwargs, training=training)

    def _any_forward(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool
    ) -> Sequence[LateMicrobatch]:
        with torch._C._DisableFuncTorch():  # memory can be looked at inside of its transforms as well
            return self._forward_of(named_tensors(args, kwargs, self.parameters), training=training)

    def _forward_of(self, fed: Sequence[tuple[str | None, Tensor]], *, training: bool) -> Sequence[LateMicrobatch]:
        if self.counting:
            self._look_at(fed)
            return ()
        self._step.num_forwards += training
        if not self._num_fetched:  # a dry run
            return ()
        if self._documents_of is not None:
            return self._record(fed, self._documents_of) if training else ()
        if any(not tensor.is_cpu and could_be_tokens(tensor) for _, tensor in fed):
            return self._send(fed, training=training)
        consumed, mismatch = self._account(
            [Fed(name, tensor, key_of(tensor)) for name, tensor in fed if tensor.is_cpu], self._step
        )
        if mismatch is not None and training:
            self._step.mismatches.append(mismatch)
        self._step.staged.extend(consumed)
        return consumed

    def oldest(self, num_microbatches: int) -> Sequence[LateMicrobatch]:
        """Consume the oldest ones, whatever a forward got."""
        with self._lock:
            newest = self._newest_consumed  # what is older was left out
            pending = [snapshot for snapshot in self._pending.values() if snapshot.number > newest]
            if num_microbatches > len(pending):
                raise ExportStopped(
                    f"expected {num_microbatches} fetched micro-batches, found {len(pending)}; fetch them from "
                    "the wrapped loader first"
                )
            chosen = []
            for snapshot in pending[:num_microbatches]:
                chosen.append(Counted(self._take(Found(snapshot), self._step), self.pool, self.scopes, self._lock))
            self._step.consumed_parts.extend(chosen)
            self._step.staged.extend(chosen)
            return chosen

    def forget_pending(self) -> None:
        """Fetched micro-batches that are not consumed yet never will be, but for those that are still compared."""
        with self._lock:
            if self._num_late:
                self._forget_after = (self._step.serial, self._num_fetched)
            else:
                self._forget(list(self._pending.values()))

    def discard(self) -> None:
        """The forwards since the last commit trained nothing: their micro-batches may be fed again."""
        with self._lock:
            step, self._step = self._step, Step()
            self._step.num_fetched = step.num_fetched
            self._num_late -= step.num_late
            for snapshot in step.touched:
                if snapshot.uses is not None:
                    snapshot.uses[snapshot.uses == step.serial] = 0
                    if not snapshot.uses.any():
                        snapshot.uses = None
            for snapshot in step.consumed:
                snapshot.holders += 1
                snapshot.seen = None
                self._remember(snapshot)
            if step.consumed:
                self._pending = {number: self._pending[number] for number in sorted(self._pending)}
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
                if name in self._names:
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

    def end_step(self, global_step: int, *, trained: bool) -> LateMicrobatch | None:
        """The step is over: raises Mismatch where its rows cannot be all. Gives back what else is to be staged."""
        with self._lock:
            step, self._step = self._step, Step()
            for snapshot in step.consumed:
                snapshot.forget_sources()
            step.fed.clear()
            step.unkeyed.clear()
            step.copies.clear()
            if step.num_late:
                return EndOfLateStep(self, step, global_step, trained)
            self._end(step, global_step, trained=trained)
            return None

    def _end(self, step: Step, global_step: int, *, trained: bool) -> None:
        _check(global_step, step, trained=trained)
        if self._forget_after is not None and not self._num_late:
            serial, number = self._forget_after
            if step.serial >= serial:
                self._forget_after = None
                self._forget([snapshot for other, snapshot in self._pending.items() if other <= number])
        if self._pending and step.touched:
            self._newest_consumed = max(snapshot.number for snapshot in step.touched)
            self._forget_before(min(snapshot.number for snapshot in step.touched))

    def _forget_before(self, number: int) -> None:
        """What was fetched before was left out; of that the newest is kept for a while, since loops shuffle."""
        with self._lock:
            while self._pending_bytes > self._max_fetched_bytes // 4 or len(self._pending) > _MAX_LEFT_OUT:
                oldest = next(iter(self._pending.values()))
                if oldest.number >= number:
                    break
                self._set_aside_one(oldest)

    def _remember(self, snapshot: Snapshot) -> None:
        number = snapshot.number
        self._pending[number] = snapshot
        self._pending_bytes += snapshot.size_bytes
        self._by_address.setdefault(snapshot.address, []).append(number)
        self._by_object.setdefault(snapshot.object_id, []).append(number)

    def _remove(self, snapshot: Snapshot) -> None:
        number = snapshot.number
        del self._pending[number]
        self._pending_bytes -= snapshot.size_bytes
        numbers = self._by_address[snapshot.address]
        numbers.remove(number)
        if not numbers:
            del self._by_address[snapshot.address]
        numbers = self._by_object[snapshot.object_id]
        numbers.remove(number)
        if not numbers:
            del self._by_object[snapshot.object_id]

    def _newest_at(self, address: int) -> Snapshot | None:
        """The newest micro-batch whose tokens begin at this address."""
        numbers = self._by_address.get(address)
        return None if numbers is None else self._pending[numbers[-1]]

    def _forget(self, snapshots: Iterable[Snapshot]) -> None:
        for snapshot in snapshots:
            self._remove(snapshot)
            snapshot.drop()

    def _set_oldest_aside(self) -> None:
        while self._pending_bytes > self._max_fetched_bytes and len(self._pending) > 1:
            self._set_aside_one(next(iter(self._pending.values())))

    def _set_aside_one(self, snapshot: Snapshot) -> None:
        if not snapshot.documents_only and snapshot.on_cpu:
            self._set_aside.update(dict.fromkeys(_row_hashes(snapshot.given_tokens())))
            while len(self._set_aside) > _MAX_SET_ASIDE:
                del self._set_aside[next(iter(self._set_aside))]
        self._forget([snapshot])

    def _fetched_as_it_is(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Consumed | None:
        """The usual case, told fast: the forward gets tensors of a micro-batch as they were fetched, and no others."""
        by_object = self._by_object
        numbers = None
        for value in (*args, *kwargs.values()):
            numbers = by_object.get(id(value))
            if numbers is not None:
                break
        if numbers is None:
            return None
        snapshot = self._pending[numbers[-1]]
        sources, by_id = snapshot.sources, snapshot.by_id
        if snapshot.columns is not None or snapshot.uses is not None or snapshot.documents_only:
            return None
        seen: dict[str, None] = {}
        for value, parameter in itertools.zip_longest(args, self.parameters[: len(args)]) if args else ():
            name = by_id.get(id(value))
            if name is not None and (parameter not in sources or sources[parameter] is value):
                seen[name] = None
            elif not isinstance(value, _SCALARS):
                return None
        for key, value in kwargs.items():
            if sources.get(key) is value is not None:
                seen[key] = None
                continue
            if isinstance(value, _SCALARS):
                continue
            name = by_id.get(id(value))
            if name is None or key in sources:
                return None
            seen[name] = None
        if snapshot.name not in seen:
            return None
        for name in seen:
            if not sources[name].is_cpu:
                return None
        if not snapshot.holds(tuple(reversed(seen))):  # what was copied last is still in the cache
            return None
        consumed = Consumed(Found(snapshot), self.pool, self.scopes, self._lock)
        if len(seen) < len(sources):
            consumed.unseen = [name for name in sources if name not in seen]
        step = self._step
        step.num_forwards += 1
        step.staged.append(consumed)
        step.consumed_parts.append(consumed)
        step.unkeyed.append(sources[snapshot.name])
        self._take(consumed.found, step)
        return consumed

    def _expected(self) -> Snapshot | None:
        """The micro-batch that comes next, where none is left out: the oldest after the newest that was consumed."""
        return next((each for each in self._pending.values() if each.number > self._newest_consumed), None)

    def _take(self, found: Found, step: Step) -> Found:
        """Its rows are consumed; a micro-batch without free rows is not pending any more."""
        snapshot = found.snapshot
        if snapshot is not None:
            self._remove(snapshot)
            step.consumed.append(snapshot)
            step.touched.append(snapshot)
            return found
        for each in found.snapshots:
            each.holders += 1
            step.touched.append(each)
        for each, row in found.places:
            if each.uses is None:
                each.uses = np.zeros(each.num_slots, np.int64)
            each.uses[row] = step.serial
        for each in found.snapshots:
            if each.number in self._pending and each.uses is not None and each.uses.all():
                self._remove(each)
                each.drop()
                step.consumed.append(each)
        return found

    def _account(self, fed: Sequence[Fed], step: Step) -> tuple[list[Consumed], str | None]:
        """What a forward consumed, which is nothing for a repetition; and why its tokens are not known, if they are not."""
        integers = [each for each in fed if each.is_tokens]
        if not integers:
            return [], "a forward got no tensor of integers, so that its tokens cannot be seen"
        named = [each for each in integers if each.name is not None and last_part(each.name) in self._names]
        known: list[Consumed] = []
        strange = self._account_all(named, step, known) if named else self._account_first(integers, step, known)
        if strange is None:
            self._account_further(integers, step, known)
        for part in known:
            compare_others(part, fed, self.pool, alone=len(known) == 1)
            if part.again and part.replaced and not repeats(part, step):
                self._take_again(part, step)
        consumed = [part for part in known if not part.again]
        step.consumed_parts.extend(consumed)
        for each in named or integers:
            step.fed[each.key] = each.tensor
        return consumed, strange

    def _account_all(self, named: Sequence[Fed], step: Step, known: list[Consumed]) -> str | None:
        """Each of these is tokens, by its name."""
        for each in named:
            found = self._find(each, step)
            if isinstance(found, str):
                return found
            self._consume(found, each, step, known)
        return None

    def _account_first(self, integers: Sequence[Fed], step: Step, known: list[Consumed]) -> str | None:
        """The first that is no other tensor of the same micro-batch is tokens; more of them may be, of other micro-batches."""
        at, first = self._first_tokens(integers, step)
        if isinstance(first, str):
            return first
        part = self._part(first.found)
        tokens = integers[at].tensor
        for other in integers[:at]:
            same_sizes = [one == another for one, another in zip(other.tensor.shape, tokens.shape, strict=False)]
            alike = other.tensor.ndim == tokens.ndim and (
                same_sizes[-1] or (same_sizes[0] and other.tensor.shape[-1] >= _FEW_COLUMNS)
            )
            if alike and not is_tensor_of(part, other):
                return self._described(other, as_array(other.tensor))
        self._consume(first, integers[at], step, known)
        return None

    def _first_tokens(self, integers: Sequence[Fed], step: Step) -> tuple[int, "Find | str"]:
        """The first that is known, and which it is, whole rows before parts of rows; else why the very first is not."""
        finds: list[Find | str] = []
        for cut in (False, True):
            for at, each in enumerate(integers):
                finds.append(self._find(each, step, cut=cut))
                if not isinstance(finds[-1], str):
                    return at, finds[-1]
        return 0, finds[len(integers)]

    def _account_further(self, integers: Sequence[Fed], step: Step, known: list[Consumed]) -> None:
        """The call may have got micro-batches beside the first; what else it got is not for us to know."""
        for each in integers:
            if not any(is_tensor_of(part, each) for part in known):
                further = self._find(each, step, cut=False)
                if not isinstance(further, str) and not further.again:
                    self._consume(further, each, step, known)

    def _part(self, found: Found) -> Consumed:
        part = Consumed(found, self.pool, self.scopes, self._lock)
        part.may_wait = self._may_wait
        return part

    def _consume(self, find: "Find", fed: Fed, step: Step, known: list[Consumed]) -> None:
        """Keep in `known` what a tensor is, and take it, if it is no repetition."""
        found = find.found
        part = self._part(found if find.again else self._take(found, step))
        part.again = find.again
        known.append(part)
        part.tied(fed.tensor)
        if find.again and found.snapshot is not None and found.snapshot.seen is None:
            found.snapshot.seen = seen_in(found.snapshot, [fed])  # in case that it was counted

    def _take_again(self, part: Consumed, step: Step) -> None:
        """The same tokens with other labels: another micro-batch, and no repetition."""
        part.again = False
        for snapshot in part.found.snapshots:
            snapshot.holders += 1
            step.touched.append(snapshot)

    def _find(self, fed: Fed, step: Step, *, cut: bool = True) -> "Find | str":
        """What a tensor of tokens is, or why it is nothing that can be recorded. cut: whether it may be a part of rows."""
        array = as_array(fed.tensor)
        find = self._find_unchanged(fed, array, step, cut=cut)
        if find is None and self._copied_again(fed.tensor):
            find = self._find_unchanged(fed, array, step, cut=cut)
        if find is None:
            return self._described(fed, array)
        width = find.found.width
        if find.found.cut and width is not None and not find.again and not self._may_hold(width):
            first = find.found.snapshots[0]
            return (
                f"a forward got the first {width} of {first.sequence_length} tokens of its rows; with shorter_rows=True they "
                "are recorded as they were"
            )
        return find

    def _find_unchanged(self, fed: Fed, array: Array, step: Step, *, cut: bool) -> "Find | None":
        for tensor in step.unkeyed:
            step.fed[key_of(tensor)] = tensor
        step.unkeyed.clear()
        own = self._newest_at(fed.key[0])
        if fed.key in step.fed and own is None and (found := used_in(step, array)) is not None:
            return Find(found, again=True)
        likely = (own, self._expected())
        for snapshot in likely:
            if (
                snapshot is not None
                and snapshot.on_cpu
                and snapshot.uses is None
                and (found := all_of(snapshot, array))
            ):
                return Find(found, again=False)
        pending = self._in_order()
        for snapshot in pending:
            if snapshot.uses is None and (found := all_of(snapshot, array)) is not None:
                return Find(found, again=False)
        found = rows_of(pending, array, free=True, cut=cut)
        if found is not None:
            return Find(found, again=False)
        found = used_in(step, array)
        if found is not None:
            return Find(found, again=True)
        found = rows_of(list(dict.fromkeys((*pending, *step.consumed))), array, free=False, cut=cut)
        if found is None or any(use_of(place) not in (0, step.serial) for place in found.places):
            return None
        return Find(found, again=False)

    def _in_order(self) -> list[Snapshot]:
        """Pending micro-batches that can be looked at, what was left out until now last."""
        pending = [snapshot for snapshot in self._pending.values() if snapshot.on_cpu]
        return sorted(pending, key=lambda snapshot: snapshot.number < self._newest_consumed)

    def _copied_again(self, fed: Tensor) -> bool:
        """Whether it lies in the memory of a fetched micro-batch that was changed since; then its copies are renewed."""
        begin = fed.data_ptr()
        for snapshot in reversed(self._pending.values()):
            source = snapshot.sources[snapshot.name]
            if not source.is_cpu or source.dtype != fed.dtype or snapshot.uses is not None or not source.numel():
                continue
            last = sum((size - 1) * stride for size, stride in zip(source.shape, source.stride(), strict=True))
            address = source.data_ptr()
            if address <= begin <= address + last * source.element_size():
                if snapshot.holds([snapshot.name]):
                    return False
                snapshot.copy_again()
                return True
        return False

    def _described(self, fed: Fed, array: Array) -> str:
        """Why a tensor of tokens is unknown, as exactly as can be told."""
        name = "tokens" if fed.name is None else repr(fed.name)
        if (
            self._set_aside
            and array.ndim
            and not self._set_aside.keys().isdisjoint(_row_hashes(array.reshape(-1, array.shape[-1])))
        ):
            return (
                f"a forward got {name} of a micro-batch that was fetched too long before; more than "
                f"{self._max_fetched_bytes} bytes were fetched after it: fetch fewer ahead, or raise "
                "ExporterOptions(max_fetched_bytes=…)"
            )
        nearest = self._nearest(array)
        where = "" if nearest is None else f"; {nearest}"
        return f"a forward got {name} {list(array.shape)} that the wrapped loader did not yield{where}"

    def _nearest(self, array: Array) -> str | None:
        for snapshot in self._pending.values():
            if not snapshot.on_cpu or snapshot.given_tokens().shape != array.shape or not array.size:
                continue
            ours = snapshot.given_tokens()
            different = np.argwhere(ours != array)
            if 0 < len(different) <= array.size // 2:
                row, column = (int(place) for place in different[0])
                return (
                    f"it is nearest to fetched micro-batch {snapshot.number}, where row {row} has {int(ours[row, column])} "
                    f"at token {column}, the forward got {int(array[row, column])} ({len(different)} tokens differ)"
                )
        return None

    def _look_at(self, fed: Sequence[tuple[str | None, Tensor]]) -> None:
        """Where micro-batches are counted: whether the forward got the oldest that no forward was seen to get."""
        counted = [staged.snapshot for staged in self._step.staged]
        waiting = [snapshot for snapshot in (*counted, *self._pending.values()) if snapshot.seen is None][:8]
        late = [(name, tensor) for name, tensor in fed if not tensor.is_cpu]
        if late and waiting:
            waiting[0].seen = LateSeen([(name, copy_tensor(tensor, self.pool)) for name, tensor in fed])
            return
        on_cpu = [Fed(name, tensor, key_of(tensor)) for name, tensor in fed if tensor.is_cpu]
        for snapshot in waiting:
            if snapshot.on_cpu and (seen := seen_in(snapshot, on_cpu)) is not None:
                snapshot.seen = seen
                return
        for snapshot in waiting:
            if snapshot.on_cpu and rows_seen_in(snapshot, on_cpu):
                return

    def _record(self, fed: Sequence[tuple[str | None, Tensor]], tokens_name: str) -> Sequence[LateMicrobatch]:
        """The forward's own tensors are recorded."""
        step = self._step
        names = [str(position) if name is None else name for position, (name, _) in enumerate(fed)]
        integers = [at for at, (_, tensor) in enumerate(fed) if could_be_tokens(tensor)]
        last = last_part(tokens_name)
        chosen = [at for at in integers if last_part(names[at]) == last]
        chosen = chosen or [at for at in integers if fed[at][1].ndim <= 2 and self._may_hold(fed[at][1].shape[-1])]
        if not chosen:
            shapes = ", ".join(str(list(fed[at][1].shape)) for at in integers)
            step.mismatches.append(
                f"a forward got no integers [num_slots, length] of a length that the run holds, found {shapes or 'none'}"
            )
            return ()
        tokens = fed[chosen[0]][1]
        key = key_of(tokens)
        before = step.copies.setdefault(key, [])
        if tokens.is_cpu and any(equal_bits(known.tensor(), tokens) for known in before):
            return ()
        copies = {
            name: copy_tensor(tensor, self.pool)
            for at, (name, (_, tensor)) in enumerate(zip(names, fed, strict=True))
            if at != chosen[0] and self.wanted(name)
        }
        copies[tokens_name] = copy_tensor(tokens, self.pool)
        step.fed[key] = tokens
        recorded = Recorded(
            tokens_name,
            copies,
            self._candidates,
            self.pool,
            self.scopes,
            self._lock,
            self._forget_before,
            tuple(before),
        )
        before.append(copies[tokens_name])
        step.num_recorded += 1
        step.staged.append(recorded)
        return (recorded,)

    def _candidates(self) -> list[Snapshot]:
        """Micro-batches that rows of a recorded forward may be of: the next ones, and the newest. Each is held."""
        with self._lock:
            pending = list(self._pending.values())
            free = [snapshot for snapshot in pending if snapshot.uses is None or not snapshot.uses.all()]
            chosen = list(dict.fromkeys((*free[:_MAX_CANDIDATES], *pending[-_MAX_CANDIDATES // 4 :])))
            for snapshot in chosen:
                snapshot.holders += 1
            return chosen

    def _send(self, fed: Sequence[tuple[str | None, Tensor]], *, training: bool) -> Sequence[LateMicrobatch]:
        """Send what a forward got to the writer thread."""
        if not self._pending and not self._step.staged:
            if training:
                self._step.mismatches.append("a forward got tokens that the wrapped loader did not yield")
            return ()
        like = next(iter(self._pending.values())) if self._pending else None
        names = {last_part(name) for name in (like.copies if like else ())}
        sizes = {math.prod(copy.shape) for copy in like.copies.values()} if like else set()
        copies = [
            (name, copy_tensor(tensor, self.pool), key_of(tensor))
            for name, tensor in fed
            if could_be_tokens(tensor) or (name and last_part(name) in names) or tensor.numel() in sizes
        ]
        step = self._step
        step.fed.update({key_of(tensor): tensor for _, tensor in fed if could_be_tokens(tensor)})
        step.num_late += 1
        self._num_late += 1
        late = LateForward(self, step, copies, training=training)
        step.staged.append(late)
        return (late,)

    def resolve_late(
        self, step: Step, copies: Sequence[tuple[str | None, HostCopy, Key]], *, training: bool
    ) -> list[Consumed]:
        """On the writer thread: what the forward behind these copies consumed."""
        fed = [Fed(name, copy.tensor(), key) for name, copy, key in copies]
        with self._lock:
            pending = list(self._pending.values())
        for snapshot in pending:
            snapshot.wait()  # without the lock: training must not wait for a device
        with self._lock:
            self._num_late -= 1
            self._may_wait = True
            consumed, mismatch = self._account(fed, step)
            self._may_wait = False
            if mismatch is not None and training:
                step.mismatches.append(mismatch)
            return consumed

    def end_late_step(self, step: Step, global_step: int, *, trained: bool) -> None:
        """On the writer thread: all forwards of the step are resolved."""
        with self._lock:
            self._end(step, global_step, trained=trained)


class Find(NamedTuple):
    """again: a forward of this step got it already."""

    found: Found
    again: bool


def _check(global_step: int, step: Step, *, trained: bool) -> None:
    if step.mismatches:
        raise Mismatch(
            f"step {global_step}: {len(step.mismatches)} of {step.num_forwards} forwards got something else than fetched "
            f"micro-batches, so the record would lack it: {step.mismatches[0]}. {_ADVICE}"
        )
    if trained and not (step.touched or step.num_recorded) and (step.num_forwards or step.num_fetched):
        raise Mismatch(
            f"step {global_step}: expected forwards of fetched micro-batches, found {step.num_forwards} forwards in "
            f"training mode and {step.num_fetched} fetched; attach to the outermost callable in training mode, "
            "feed it what hook.wrap(loader) yields, or call hook.consume(n) where no forward sees whole sequences"
        )


def _row_hashes(rows: Array) -> set[int]:
    """Of the first tokens of each row, to say later that it was one of these."""
    return {hash(row.tobytes()) for row in np.ascontiguousarray(rows[:, :_HASHED], np.int64)}
