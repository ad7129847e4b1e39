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

from train_hooks.batches import named_tensors
from train_hooks.consumed import Consumed, Recorded, in_other_form
from train_hooks.export_format.errors import ExportStopped, InputError, Mismatch
from train_hooks.export_format.records import Matched, TensorScope
from train_hooks.exporter import LateMicrobatch, StagedMicrobatch
from train_hooks.host_copies import BufferPool, HostCopy, copy_tensor
from train_hooks.matching import Found, all_of, rows_of
from train_hooks.snapshots import Array, Seen, Snapshot, as_array, equal_bits
from train_hooks.tensor_scopes import TensorScopes

__all__ = ["Consumption"]

_SCALARS = (type(None), bool, int, float, str)
_MAX_CANDIDATES = 64  # fetched micro-batches that a recorded forward is compared with
_MAX_LEFT_OUT = 256  # micro-batches that are kept though later ones were consumed
_MAX_SET_ASIDE = 1 << 17  # rows that are remembered by a hash
_FEW_COLUMNS = 4  # integers with fewer for each row are not taken for tokens that somebody edited
_HASHED = 64  # tokens of a row that was set aside
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
_ADVICE = (
    "wrap the loader after whatever edits or cuts its micro-batches, or record what the forward gets: "
    'hook.wrap(loader, record="forward"); put forwards that train nothing into `with hook.paused():`'
)


class Fed(NamedTuple):
    """A tensor that a forward got, on the CPU. key: which tensor it is, for as long as somebody keeps it."""

    name: str | None
    tensor: Tensor
    key: "Key"

    @property
    def is_tokens(self) -> bool:
        """Whether it could hold tokens."""
        return _could_be_tokens(self.tensor)


Key = tuple[int, int, torch.Size]
_serials = itertools.count(1)


class _Step:
    """What happened since the last commit. fed: the tensors of its forwards, kept lest others get their addresses.

    unkeyed: more of those, whose keys nobody wanted yet. consumed: micro-batches of which no row is free any more.
    copies: of the tokens of recorded forwards.
    """

    def __init__(self) -> None:
        self.serial = next(_serials)
        self.num_fetched = self.num_forwards = self.num_late = self.num_recorded = 0
        self.mismatches: list[str] = []
        self.consumed: list[Snapshot] = []
        self.touched: list[Snapshot] = []
        self.staged: list[Any] = []
        self.consumed_parts: list[Consumed] = []
        self.fed: dict[Key, Tensor] = {}
        self.unkeyed: list[Tensor] = []
        self.copies: dict[Key, list[HostCopy]] = {}


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
        self._step = _Step()
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
        if any(not tensor.is_cpu and _could_be_tokens(tensor) for _, tensor in fed):
            return self._send(fed, training=training)
        consumed, mismatch = self._account(
            [Fed(name, tensor, _key(tensor)) for name, tensor in fed if tensor.is_cpu], self._step
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
                chosen.append(_Counted(self._take(Found(snapshot), self._step), self.pool, self.scopes, self._lock))
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
            step, self._step = self._step, _Step()
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
            step, self._step = self._step, _Step()
            for snapshot in step.consumed:
                snapshot.forget_sources()
            step.fed.clear()
            step.unkeyed.clear()
            step.copies.clear()
            if step.num_late:
                return _EndOfLateStep(self, step, global_step, trained)
            self._end(step, global_step, trained=trained)
            return None

    def _end(self, step: _Step, global_step: int, *, trained: bool) -> None:
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

    def _take(self, found: Found, step: _Step) -> Found:
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

    def _account(self, fed: Sequence[Fed], step: _Step) -> tuple[list[Consumed], str | None]:
        """What a forward consumed, which is nothing for a repetition; and why its tokens are not known, if they are not."""
        integers = [each for each in fed if each.is_tokens]
        if not integers:
            return [], "a forward got no tensor of integers, so that its tokens cannot be seen"
        named = [each for each in integers if each.name is not None and _last_part(each.name) in self._names]
        known: list[Consumed] = []
        strange = self._account_all(named, step, known) if named else self._account_first(integers, step, known)
        if strange is None:
            self._account_further(integers, step, known)
        for part in known:
            _compare_others(part, fed, self.pool, alone=len(known) == 1)
            if part.again and part.replaced and not _repeats(part, step):
                self._take_again(part, step)
        consumed = [part for part in known if not part.again]
        step.consumed_parts.extend(consumed)
        for each in named or integers:
            step.fed[each.key] = each.tensor
        return consumed, strange

    def _account_all(self, named: Sequence[Fed], step: _Step, known: list[Consumed]) -> str | None:
        """Each of these is tokens, by its name."""
        for each in named:
            found = self._find(each, step)
            if isinstance(found, str):
                return found
            self._consume(found, each, step, known)
        return None

    def _account_first(self, integers: Sequence[Fed], step: _Step, known: list[Consumed]) -> str | None:
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
            if alike and not _is_tensor_of(part, other):
                return self._described(other, as_array(other.tensor))
        self._consume(first, integers[at], step, known)
        return None

    def _first_tokens(self, integers: Sequence[Fed], step: _Step) -> tuple[int, "_Find | str"]:
        """The first that is known, and which it is, whole rows before parts of rows; else why the very first is not."""
        finds: list[_Find | str] = []
        for cut in (False, True):
            for at, each in enumerate(integers):
                finds.append(self._find(each, step, cut=cut))
                if not isinstance(finds[-1], str):
                    return at, finds[-1]
        return 0, finds[len(integers)]

    def _account_further(self, integers: Sequence[Fed], step: _Step, known: list[Consumed]) -> None:
        """The call may have got micro-batches beside the first; what else it got is not for us to know."""
        for each in integers:
            if not any(_is_tensor_of(part, each) for part in known):
                further = self._find(each, step, cut=False)
                if not isinstance(further, str) and not further.again:
                    self._consume(further, each, step, known)

    def _part(self, found: Found) -> Consumed:
        part = Consumed(found, self.pool, self.scopes, self._lock)
        part.may_wait = self._may_wait
        return part

    def _consume(self, find: "_Find", fed: Fed, step: _Step, known: list[Consumed]) -> None:
        """Keep in `known` what a tensor is, and take it, if it is no repetition."""
        found = find.found
        part = self._part(found if find.again else self._take(found, step))
        part.again = find.again
        known.append(part)
        part.tied(fed.tensor)
        if find.again and found.snapshot is not None and found.snapshot.seen is None:
            found.snapshot.seen = _seen_in(found.snapshot, [fed])  # in case that it was counted

    def _take_again(self, part: Consumed, step: _Step) -> None:
        """The same tokens with other labels: another micro-batch, and no repetition."""
        part.again = False
        for snapshot in part.found.snapshots:
            snapshot.holders += 1
            step.touched.append(snapshot)

    def _find(self, fed: Fed, step: _Step, *, cut: bool = True) -> "_Find | str":
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

    def _find_unchanged(self, fed: Fed, array: Array, step: _Step, *, cut: bool) -> "_Find | None":
        for tensor in step.unkeyed:
            step.fed[_key(tensor)] = tensor
        step.unkeyed.clear()
        own = self._newest_at(fed.key[0])
        if fed.key in step.fed and own is None and (found := _used_in(step, array)) is not None:
            return _Find(found, again=True)
        likely = (own, self._expected())
        for snapshot in likely:
            if (
                snapshot is not None
                and snapshot.on_cpu
                and snapshot.uses is None
                and (found := all_of(snapshot, array))
            ):
                return _Find(found, again=False)
        pending = self._in_order()
        for snapshot in pending:
            if snapshot.uses is None and (found := all_of(snapshot, array)) is not None:
                return _Find(found, again=False)
        found = rows_of(pending, array, free=True, cut=cut)
        if found is not None:
            return _Find(found, again=False)
        found = _used_in(step, array)
        if found is not None:
            return _Find(found, again=True)
        found = rows_of(list(dict.fromkeys((*pending, *step.consumed))), array, free=False, cut=cut)
        if found is None or any(_use(place) not in (0, step.serial) for place in found.places):
            return None
        return _Find(found, again=False)

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
            waiting[0].seen = _LateSeen([(name, copy_tensor(tensor, self.pool)) for name, tensor in fed])
            return
        on_cpu = [Fed(name, tensor, _key(tensor)) for name, tensor in fed if tensor.is_cpu]
        for snapshot in waiting:
            if snapshot.on_cpu and (seen := _seen_in(snapshot, on_cpu)) is not None:
                snapshot.seen = seen
                return
        for snapshot in waiting:
            if snapshot.on_cpu and _rows_seen_in(snapshot, on_cpu):
                return

    def _record(self, fed: Sequence[tuple[str | None, Tensor]], tokens_name: str) -> Sequence[LateMicrobatch]:
        """The forward's own tensors are recorded."""
        step = self._step
        names = [str(position) if name is None else name for position, (name, _) in enumerate(fed)]
        integers = [at for at, (_, tensor) in enumerate(fed) if _could_be_tokens(tensor)]
        last = _last_part(tokens_name)
        chosen = [at for at in integers if _last_part(names[at]) == last]
        chosen = chosen or [at for at in integers if fed[at][1].ndim <= 2 and self._may_hold(fed[at][1].shape[-1])]
        if not chosen:
            shapes = ", ".join(str(list(fed[at][1].shape)) for at in integers)
            step.mismatches.append(
                f"a forward got no integers [num_slots, length] of a length that the run holds, found {shapes or 'none'}"
            )
            return ()
        tokens = fed[chosen[0]][1]
        key = _key(tokens)
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
        names = {_last_part(name) for name in (like.copies if like else ())}
        sizes = {math.prod(copy.shape) for copy in like.copies.values()} if like else set()
        copies = [
            (name, copy_tensor(tensor, self.pool), _key(tensor))
            for name, tensor in fed
            if _could_be_tokens(tensor) or (name and _last_part(name) in names) or tensor.numel() in sizes
        ]
        step = self._step
        step.fed.update({_key(tensor): tensor for _, tensor in fed if _could_be_tokens(tensor)})
        step.num_late += 1
        self._num_late += 1
        late = _LateForward(self, step, copies, training=training)
        step.staged.append(late)
        return (late,)

    def resolve_late(
        self, step: _Step, copies: Sequence[tuple[str | None, HostCopy, Key]], *, training: bool
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

    def end_late_step(self, step: _Step, global_step: int, *, trained: bool) -> None:
        """On the writer thread: all forwards of the step are resolved."""
        with self._lock:
            self._end(step, global_step, trained=trained)


class _Find(NamedTuple):
    """again: a forward of this step got it already."""

    found: Found
    again: bool


class _Counted(Consumed):
    """A micro-batch that was counted for a forward, whatever that got."""

    def __init__(self, found: Found, pool: BufferPool, scopes: TensorScopes, lock: threading.RLock) -> None:
        super().__init__(found, pool, scopes, lock)
        self.snapshot = found.snapshots[0]

    def resolve(self) -> list[StagedMicrobatch]:
        seen = self.snapshot.seen
        self.counted(seen.resolve(self.snapshot) if isinstance(seen, _LateSeen) else seen)
        return super().resolve()


class _LateSeen:
    """What a forward got on a device, where micro-batches are counted."""

    def __init__(self, copies: Sequence[tuple[str | None, HostCopy]]) -> None:
        self._copies = copies

    def resolve(self, snapshot: Snapshot) -> Seen | None:
        fed = [copy.tensor() for _, copy in self._copies]
        names = [name for name, _ in self._copies]
        return _seen_in(snapshot, [Fed(name, tensor, _key(tensor)) for name, tensor in zip(names, fed, strict=True)])


class _LateForward:
    """A forward whose tensors are on their way from a device."""

    late = True

    def __init__(
        self,
        consumption: Consumption,
        step: _Step,
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


class _EndOfLateStep:
    """Stands behind the last forward of a step that has late ones, to check that the step is whole."""

    num_slots = 0
    size_bytes = 0
    late = True

    def __init__(self, consumption: Consumption, step: _Step, global_step: int, trained: bool) -> None:
        self._consumption, self._step, self._global_step, self._trained = consumption, step, global_step, trained

    def resolve(self) -> list[StagedMicrobatch]:
        self._consumption.end_late_step(self._step, self._global_step, trained=self._trained)
        return []

    def release(self) -> None:
        """Nothing is held."""


def _check(global_step: int, step: _Step, *, trained: bool) -> None:
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


def _used_in(step: _Step, array: Array) -> Found | None:
    """`array` as what forwards of this step got already: these rows, of this width."""
    widths: dict[tuple[int, int], set[int | None]] = {}
    for part in step.consumed_parts:
        for snapshot, row in part.found.all_places():
            widths.setdefault((id(snapshot), row), set()).add(part.found.width)
    known = list(dict.fromkeys(step.touched))
    candidates = [found for snapshot in known if (found := all_of(snapshot, array)) is not None]
    rows = rows_of(known, array, free=False)
    for found in (*candidates, *([] if rows is None else [rows])):
        if all(found.width in widths.get((id(snapshot), row), ()) for snapshot, row in found.all_places()):
            return found
    return None


def _repeats(part: Consumed, step: _Step) -> bool:
    """Whether a forward of this step got these rows with these very tensors."""
    return any(
        set(part.found.all_places()) <= set(before.found.all_places())
        and all(_holds_equal(before, name, copy, part) for name, copy in part.replaced.items())
        for before in step.consumed_parts
    )


def _holds_equal(before: Consumed, name: str, copy: HostCopy, part: Consumed) -> bool:
    known = before.replaced.get(name)
    if known is None:
        return False
    rows = {place: number for number, place in enumerate(before.found.all_places())}
    tensor = known.tensor()
    if tensor.ndim and tensor.shape[0] == len(rows):
        tensor = tensor[[rows[place] for place in part.found.all_places()]]
    return equal_bits(tensor, copy.tensor())


def _use(place: tuple[Snapshot, int]) -> int:
    snapshot, row = place
    return 0 if snapshot.uses is None else int(snapshot.uses[row])


def _seen_in(snapshot: Snapshot, fed: Sequence[Fed]) -> Seen | None:
    """How a forward got this micro-batch, if it did."""
    for each in fed:
        if not each.is_tokens or (found := all_of(snapshot, as_array(each.tensor))) is None:
            continue
        part = Consumed(found, BufferPool(), TensorScopes({}), threading.RLock())
        part.tied(each.tensor)
        _compare_others(part, fed, part.pool, alone=False)
        seen = [name for name in snapshot.copies if name != snapshot.name and name not in part.unseen]
        return Seen(part.matched or Matched.WHOLE, part.relation, seen)
    return None


def _rows_seen_in(snapshot: Snapshot, fed: Sequence[Fed]) -> bool:
    """Whether a forward got some rows of this micro-batch that none was seen to get before."""
    for each in fed:
        found = rows_of([snapshot], as_array(each.tensor), free=False) if each.is_tokens else None
        if found is not None and not found.cut:
            rows = {row for _, row in found.places}
            if rows <= snapshot.rows_seen:
                continue
            snapshot.rows_seen |= rows
            if len(snapshot.rows_seen) == snapshot.num_slots:
                part = Consumed(found, BufferPool(), TensorScopes({}), threading.RLock())
                part.tied(each.tensor)
                snapshot.seen = Seen(part.matched or Matched.WHOLE, part.relation, ())
            return True
    return False


def _is_tensor_of(part: Consumed, fed: Fed) -> bool:
    """Whether it is another tensor of the same rows, by its name or by what it holds, or their tokens in another form."""
    names = list(part.found.snapshots[0].copies)
    if fed.name is not None and _last_part(fed.name) in {_last_part(name) for name in names}:
        return True
    return any(_is_among(part, name, [fed], by_name=True, sliced=True) for name in names if part.is_of_rows(name))


def _compare_others(part: Consumed, fed: Sequence[Fed], pool: BufferPool, *, alone: bool) -> None:
    """Labels, masks, positions: what of them the forward got, and what it got under their names instead."""
    first = part.found.snapshots[0]
    unseen = []
    known = {_last_part(name) for name in first.copies}
    for name in first.copies:
        if name == first.name:
            continue
        source = first.sources.get(name)
        own = [each for each in fed if _is_named(each, name)] or [each for each in fed if each.tensor is source]
        by_name = bool(own)
        own = own or [each for each in fed if each.name is None or _last_part(each.name) not in known]
        if part.is_of_rows(name) and _is_among(part, name, own, by_name=by_name):
            continue
        instead = part.in_shape_of(name, own[0].tensor) if by_name else None
        if instead is not None and alone and part.may_replace(name, instead):
            part.replaced[name] = copy_tensor(instead, pool)
        else:
            unseen.append(name)
    part.unseen = unseen


def _is_among(part: Consumed, name: str, fed: Sequence[Fed], *, by_name: bool, sliced: bool = False) -> bool:
    """Whether one of these is our tensor, in whatever form. Without its name, what holds but one value is not known."""
    ours, columns = part.value(name), part.found.snapshots[0].columns
    if not by_name and (not ours.size or bool((ours == ours.flat[0]).all())):
        return False
    forms = [ours] if columns is None or ours.ndim < 2 else [ours, ours[:, columns]]
    if part.found.width is not None and not part.found.cut and ours.ndim >= 2:
        forms.append(ours[:, : part.found.width])  # without its last column, as the tokens
    return any(in_other_form(form, as_array(each.tensor), sliced=sliced) for form in forms for each in fed)


def _is_named(fed: Fed, name: str) -> bool:
    return fed.name is not None and _last_part(fed.name) == _last_part(name)


def _could_be_tokens(tensor: Tensor) -> bool:
    return (
        tensor.ndim > 0
        and tensor.numel() > 0
        and not tensor.is_floating_point()
        and not tensor.is_complex()
        and tensor.dtype is not torch.bool
    )


def _key(tensor: Tensor) -> Key:
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version, tensor.shape


def _last_part(name: str) -> str:
    return name.rpartition(".")[2]


def _row_hashes(rows: Array) -> set[int]:
    """Of the first tokens of each row, to say later that it was one of these."""
    return {hash(row.tobytes()) for row in np.ascontiguousarray(rows[:, :_HASHED], np.int64)}
