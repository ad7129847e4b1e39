"""Fetched micro-batches that wait for their forwards, in the order of fetching, in bounded memory.

- A micro-batch is pending until every row of it was consumed, or until it is forgotten.
- Beyond `max_fetched_bytes` the oldest are set aside: their copies are freed, and hashes of their rows are kept, so that a
  forward that gets one of them after all is refused in words.
- Micro-batches that were passed over are kept for a while, since loops shuffle.

The lock guards all of this: the training thread and the writer thread both match forwards.
"""

import threading
from collections.abc import Iterable

import numpy as np
from torch import Tensor

from train_hooks.hook.matching.match_tokens import RowMatch
from train_hooks.hook.matching.step_state import StepState
from train_hooks.hook.tensors.snapshots import Array, Snapshot

__all__ = ["PendingMicrobatches"]

_MAX_CANDIDATES = 64  # micro-batches that a recorded forward is compared with
_MAX_PASSED_OVER = 256  # micro-batches that are kept though later ones were consumed
_MAX_ROW_HASHES = 1 << 17  # rows that were set aside
_HASHED_TOKENS = 64  # of each of those rows


class PendingMicrobatches:
    """The micro-batches that were fetched and not consumed.

    by_number: in the order of fetching; the first has number 1. by_tokens_id: the numbers of those whose token tensor has
    this `id`. newest_consumed: the highest number that a committed step consumed. size_bytes: memory of the copies.
    """

    def __init__(self, max_fetched_bytes: int) -> None:
        self.lock = threading.RLock()
        self.by_number: dict[int, Snapshot] = {}
        self.by_tokens_id: dict[int, list[int]] = {}
        self.newest_consumed = 0
        self.max_fetched_bytes = max_fetched_bytes
        self._by_address: dict[int, list[int]] = {}
        self.size_bytes = 0
        self._set_aside: dict[int, None] = {}

    def add(self, snapshot: Snapshot) -> None:
        """A micro-batch was fetched, or its forwards were discarded."""
        number = snapshot.number
        self.by_number[number] = snapshot
        self.size_bytes += snapshot.size_bytes
        self._by_address.setdefault(snapshot.tokens_address, []).append(number)
        self.by_tokens_id.setdefault(snapshot.tokens_id, []).append(number)

    def consume(self, match: RowMatch, step: StepState) -> None:
        """The step consumes these rows. A micro-batch without free rows is not pending any more."""
        snapshot = match.whole
        if snapshot is not None:
            self._remove(snapshot)
            step.used_up.append(snapshot)
            step.used.append(snapshot)
            return
        snapshots = match.snapshots
        for each in snapshots:
            each.num_holders += 1
            step.used.append(each)
        for each, row in match.rows:
            if each.consumed_by is None:
                each.consumed_by = np.zeros(each.num_slots, np.int64)
            each.consumed_by[row] = step.serial
        for each in snapshots:
            if each.number in self.by_number and each.consumed_by is not None and each.consumed_by.all():
                self._remove(each)
                each.release()
                step.used_up.append(each)

    def give_back(self, step: StepState) -> None:
        """The step was discarded: its rows are free again."""
        for snapshot in step.used:
            if snapshot.consumed_by is not None:
                snapshot.consumed_by[snapshot.consumed_by == step.serial] = 0
                if not snapshot.consumed_by.any():
                    snapshot.consumed_by = None
        for snapshot in step.used_up:
            snapshot.num_holders += 1
            snapshot.observation = None
            self.add(snapshot)
        if step.used_up:
            self.by_number = {number: self.by_number[number] for number in sorted(self.by_number)}

    def end_step(self, step: StepState) -> None:
        """The step is committed: what was fetched before its micro-batches was passed over."""
        if self.by_number and step.used:
            self.newest_consumed = max(snapshot.number for snapshot in step.used)
            self.forget_passed_over(min(snapshot.number for snapshot in step.used))

    def forget_passed_over(self, before: int) -> None:
        """Set the oldest with numbers below `before` aside, but for the newest 256 within a quarter of the memory."""
        with self.lock:
            while self.size_bytes > self.max_fetched_bytes // 4 or len(self.by_number) > _MAX_PASSED_OVER:
                oldest = next(iter(self.by_number.values()))
                if oldest.number >= before:
                    break
                self._set_one_aside(oldest)

    def set_oldest_aside(self) -> None:
        """Set the oldest aside until the rest fits into `max_fetched_bytes`."""
        while self.size_bytes > self.max_fetched_bytes and len(self.by_number) > 1:
            self._set_one_aside(next(iter(self.by_number.values())))

    def forget(self, snapshots: Iterable[Snapshot]) -> None:
        """These will never be consumed."""
        for snapshot in snapshots:
            self._remove(snapshot)
            snapshot.release()

    def was_set_aside(self, array: Array) -> bool:
        """Whether a row of `array` is one of a micro-batch that was set aside."""
        return (
            bool(self._set_aside)
            and array.ndim > 0
            and not self._set_aside.keys().isdisjoint(_row_hashes(array.reshape(-1, array.shape[-1])))
        )

    def newest_at(self, address: int) -> Snapshot | None:
        """The newest micro-batch whose tokens begin at this address."""
        numbers = self._by_address.get(address)
        return None if numbers is None else self.by_number[numbers[-1]]

    def next_expected(self) -> Snapshot | None:
        """The oldest one after the newest that was consumed: the next where none is passed over."""
        return next((each for each in self.by_number.values() if each.number > self.newest_consumed), None)

    def comparable(self) -> list[Snapshot]:
        """Those whose tokens are in CPU memory, what was passed over until now last."""
        ready = [snapshot for snapshot in self.by_number.values() if snapshot.tokens_ready]
        return sorted(ready, key=lambda snapshot: snapshot.number < self.newest_consumed)

    def held_candidates(self) -> list[Snapshot]:
        """What the rows of a recorded forward may be rows of: the next ones, and the newest. `release` each of them."""
        with self.lock:
            pending = list(self.by_number.values())
            free = [each for each in pending if each.consumed_by is None or not each.consumed_by.all()]
            chosen = list(dict.fromkeys((*free[:_MAX_CANDIDATES], *pending[-_MAX_CANDIDATES // 4 :])))
            for snapshot in chosen:
                snapshot.num_holders += 1
            return chosen

    def refresh_edited(self, tensor: Tensor) -> bool:
        """Copy a micro-batch again that was edited in place, where `tensor` lies in its memory. Whether there was one."""
        begin = tensor.data_ptr()
        for snapshot in reversed(self.by_number.values()):
            source = snapshot.sources[snapshot.tokens_name]
            if not source.is_cpu or source.dtype != tensor.dtype or snapshot.consumed_by is not None:
                continue
            if not source.numel():
                continue
            last = sum((size - 1) * stride for size, stride in zip(source.shape, source.stride(), strict=True))
            address = source.data_ptr()
            if address <= begin <= address + last * source.element_size():
                if snapshot.is_unchanged([snapshot.tokens_name]):
                    return False
                snapshot.refresh_copies()
                return True
        return False

    def nearest_text(self, array: Array) -> str | None:
        """Where `array` differs from a micro-batch of its shape, in words, if at most half of the tokens differ."""
        for snapshot in self.by_number.values():
            if not snapshot.tokens_ready or snapshot.forward_tokens().shape != array.shape or not array.size:
                continue
            ours = snapshot.forward_tokens()
            different = np.argwhere(ours != array)
            if 0 < len(different) <= array.size // 2:
                row, column = map(int, different[0])
                return (
                    f"it is nearest to fetched micro-batch {snapshot.number}, where row {row} has {int(ours[row, column])} "
                    f"at token {column}, the forward got {int(array[row, column])} ({len(different)} tokens differ)"
                )
        return None

    def _remove(self, snapshot: Snapshot) -> None:
        number = snapshot.number
        del self.by_number[number]
        self.size_bytes -= snapshot.size_bytes
        numbers = self._by_address[snapshot.tokens_address]
        numbers.remove(number)
        if not numbers:
            del self._by_address[snapshot.tokens_address]
        numbers = self.by_tokens_id[snapshot.tokens_id]
        numbers.remove(number)
        if not numbers:
            del self.by_tokens_id[snapshot.tokens_id]

    def _set_one_aside(self, snapshot: Snapshot) -> None:
        if not snapshot.documents_only and snapshot.tokens_ready:
            self._set_aside.update(dict.fromkeys(_row_hashes(snapshot.forward_tokens())))
            while len(self._set_aside) > _MAX_ROW_HASHES:
                del self._set_aside[next(iter(self._set_aside))]
        self.forget([snapshot])


def _row_hashes(rows: Array) -> set[int]:
    """Of the first tokens of each row."""
    return {hash(row.tobytes()) for row in np.ascontiguousarray(rows[:, :_HASHED_TOKENS], np.int64)}
