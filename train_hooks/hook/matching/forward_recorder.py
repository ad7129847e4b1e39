"""`wrap(record="forward")`: what the forward gets is recorded, and the loader's rows lend their documents.

It is for loops that edit tokens between the loader and the forward, so that nothing can be held to what was fetched.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from train_hooks.export_format.records import Evidence, Segment
from train_hooks.hook.export.staging import StagedMicrobatch
from train_hooks.hook.matching.consumed import concatenated
from train_hooks.hook.matching.match_tokens import FetchedRow
from train_hooks.hook.matching.pending import PendingMicrobatches
from train_hooks.hook.matching.step_state import StepState, base_name, can_hold_tokens, tensor_key
from train_hooks.hook.tensors.host_copies import BufferPool, HostCopy, copy_tensor
from train_hooks.hook.tensors.scopes import TensorScopes
from train_hooks.hook.tensors.snapshots import Array, Snapshot, as_array, equal_bits, torch_dtype

__all__ = ["ForwardRecorder", "RecordedForward"]


class ForwardRecorder:
    """Copies the tensors of forwards. accepts_length: whether the run can hold rows of a length."""

    def __init__(
        self,
        pending: PendingMicrobatches,
        pool: BufferPool,
        scopes: TensorScopes,
        accepts_length: Callable[[int], bool],
    ) -> None:
        self._pending, self._pool, self._scopes = pending, pool, scopes
        self._accepts_length = accepts_length

    def record(
        self,
        tensors: Sequence[tuple[str | None, Tensor]],
        tokens_name: str,
        step: StepState,
        is_wanted: Callable[[str], bool],
    ) -> "RecordedForward | None":
        """Copy what a forward got; None where a forward of the step got it before, or its tokens cannot be told.

        tokens_name: the loader's name for the tokens. is_wanted: whether other tensors of a name are recorded.
        """
        names = [str(position) if name is None else name for position, (name, _) in enumerate(tensors)]
        integers = [at for at, (_, tensor) in enumerate(tensors) if can_hold_tokens(tensor)]
        chosen = [at for at in integers if base_name(names[at]) == base_name(tokens_name)] or [
            at for at in integers if tensors[at][1].ndim <= 2 and self._accepts_length(tensors[at][1].shape[-1])
        ]
        if not chosen:
            shapes = ", ".join(str(list(tensors[at][1].shape)) for at in integers)
            step.mismatches.append(
                f"a forward got no integers [num_slots, length] of a length that the run holds, found {shapes or 'none'}"
            )
            return None
        tokens = tensors[chosen[0]][1]
        key = tensor_key(tokens)
        earlier = step.recorded_tokens.setdefault(key, [])
        if tokens.is_cpu and any(equal_bits(copy.tensor(), tokens) for copy in earlier):
            return None
        copies = {
            name: copy_tensor(tensor, self._pool)
            for at, (name, (_, tensor)) in enumerate(zip(names, tensors, strict=True))
            if at != chosen[0] and is_wanted(name)
        }
        copies[tokens_name] = copy_tensor(tokens, self._pool)
        step.known_tensors[key] = tokens
        recorded = RecordedForward(tokens_name, copies, self._pending, self._pool, self._scopes, tuple(earlier))
        earlier.append(copies[tokens_name])
        step.num_recorded += 1
        step.staged.append(recorded)
        return recorded


class RecordedForward:
    """A forward whose own tensors are recorded, under their names. Implements `DeferredMicrobatch`.

    A fetched row lends its documents to a row that has at least half of its tokens, not counting the token that the row
    has most often. earlier: what forwards of this step got as the very same tensor; if an equal one is among them, this
    forward is a repetition.
    """

    must_resolve = False

    def __init__(
        self,
        tokens_name: str,
        copies: Mapping[str, HostCopy],
        pending: PendingMicrobatches,
        pool: BufferPool,
        scopes: TensorScopes,
        earlier: Sequence[HostCopy] = (),
    ) -> None:
        self._tokens_name, self._copies, self._pending = tokens_name, copies, pending
        self._pool, self._scopes, self._earlier = pool, scopes, earlier
        self.declared: dict[str, HostCopy] = {}
        shape = copies[tokens_name].shape
        self.num_slots = 1 if len(shape) == 1 else int(shape[0])
        self.size_bytes = sum(copy.buffer.nbytes for copy in copies.values()) + 256 * self.num_slots

    def resolve(self) -> list[StagedMicrobatch]:
        """The micro-batch as arrays. Called once, on the writer thread."""
        fed = self._copies[self._tokens_name].tensor()
        if any(equal_bits(copy.tensor(), fed) for copy in self._earlier):
            self._copies = {name: copy for name, copy in self._copies.items() if name != self._tokens_name}
            self.release()  # but for the tokens, which later ones may be compared with
            return []
        tokens = as_array(fed)
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        tensors: dict[str, Array] = {}
        batch_tensors: dict[str, Array] = {}
        dtypes: dict[str, str] = {}
        for name, copy in {**self._copies, **self.declared}.items():
            if name == self._tokens_name:
                continue
            tensor = copy.tensor()
            array = as_array(tensor)
            whole = self._scopes.is_whole(name, array, *tokens.shape)
            (batch_tensors if whole else tensors)[name] = array
            dtype = torch_dtype(tensor)
            if dtype is not None:
                dtypes[name] = dtype
        segments, sample_index, sample_start = self._borrowed_documents(tokens)
        return [
            StagedMicrobatch(
                tokens=tokens,  # type: ignore[arg-type]
                tensors=tensors,
                batch_tensors=batch_tensors,
                segments=segments,
                sample_index=sample_index,
                sample_start=sample_start,
                dtypes=dtypes,
                tensor_evidence={"sample_start": Evidence.LOADER, **dict.fromkeys(self.declared, Evidence.DECLARED)},
                tokens_key=self._tokens_name,
                release=self.release,
            )
        ]

    def release(self) -> None:
        """Its arrays are not needed any more, or never will be."""
        for copy in (*self._copies.values(), *self.declared.values()):
            if not copy.in_flight:
                self._pool.give(copy)

    def _borrowed_documents(
        self, tokens: Array
    ) -> tuple[tuple[tuple[Segment, ...], ...], list[int] | None, list[int] | None]:
        """Segments, sample indices and sample starts of the fetched rows that these rows were made from."""
        candidates = self._pending.held_candidates()
        origins = _origins(tokens, candidates)
        with self._pending.lock:
            for snapshot, row in (origin for origin in origins if origin is not None):
                if snapshot.consumed_by is None:
                    snapshot.consumed_by = np.zeros(snapshot.num_slots, np.int64)
                snapshot.consumed_by[row] = 1
        numbers = [origin[0].number for origin in origins if origin is not None]
        if numbers:
            self._pending.forget_passed_over(min(numbers))
        documents = _documents_of(origins, tokens.shape[1])
        with self._pending.lock:
            for snapshot in candidates:
                snapshot.release()
        return documents


def _origins(tokens: Array, candidates: Sequence[Snapshot]) -> list[FetchedRow | None]:
    """The fetched row that each row was made from: one that no other row was made from, if there is one, else another."""
    found: list[FetchedRow | None] = [None] * len(tokens)
    for claimed in (False, True):
        for snapshot in candidates if not claimed else reversed(candidates):
            if all(origin is not None for origin in found):
                return found
            rows = [row for row in range(snapshot.num_slots) if bool(snapshot.free_rows()[row]) is not claimed]
            _find_origins(snapshot, rows, tokens, found)
    return found


def _find_origins(snapshot: Snapshot, rows: list[int], tokens: Array, found: list[FetchedRow | None]) -> None:
    """Fill `found` with those of `rows` that share at least half of the tokens. Each is taken out of `rows`."""
    ours = snapshot.tokens()
    width = min(ours.shape[1], tokens.shape[1])
    for at, row in enumerate(tokens):
        if found[at] is not None or not rows:
            continue
        values, counts = np.unique(row[:width], return_counts=True)
        telling = row[:width] != values[np.argmax(counts)]  # not the padding, nor the mask
        if not telling.any():
            telling = np.ones(width, bool)
        num_equal = (ours[rows, :width][:, telling] == row[:width][telling]).sum(axis=1)
        best = int(np.argmax(num_equal))
        if num_equal[best] * 2 >= telling.sum():
            found[at] = (snapshot, rows.pop(best))


def _documents_of(
    origins: Sequence[FetchedRow | None], length: int
) -> tuple[tuple[tuple[Segment, ...], ...], list[int] | None, list[int] | None]:
    """Segments, sample indices and starts of rows. A row without an origin has no segments, and then no row has an index."""
    segments: list[tuple[Segment, ...]] = []
    for origin in origins:
        of_row = None if origin is None else origin[0].segments([origin[1]], length)
        segments.append(of_row[0] if of_row else ())
    known = [origin for origin in origins if origin is not None]
    index = start = None
    if len(known) == len(origins):
        index = concatenated([each.sample_index([row]) for each, row in known])
        start = concatenated([each.sample_start([row]) for each, row in known])
    return tuple(segments) if any(segments) else (), index, start
