"""What a forward consumed, on its way to the writer thread, which makes arrays of it."""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

from train_hooks.export_format.errors import ExportStopped
from train_hooks.export_format.records import Evidence, Matched, Segment
from train_hooks.hook.export.exporter import StagedMicrobatch
from train_hooks.hook.matching.rows import Found
from train_hooks.hook.tensors.host_copies import BufferPool, HostCopy
from train_hooks.hook.tensors.scopes import TensorScopes
from train_hooks.hook.tensors.snapshots import Array, Seen, Snapshot, as_array, equal_bits, torch_dtype

__all__ = ["Consumed", "Recorded", "in_other_form"]

T = TypeVar("T")


class Consumed:
    """Rows of fetched micro-batches as one forward got them. Implements `LateMicrobatch`.

    late: nothing waits for it.

    unseen: names of tensors that the forward was not seen to get, so that they are the loader's. replaced: what the forward
    got under a name where that is not what the loader yielded. declared: what the training says that it used.
    """

    late = False
    may_wait = True  # for copies that a device still makes, to compare them
    made: StagedMicrobatch | None = None
    again = False  # whether a forward of the step got it before
    evidence: Evidence | None = None  # None: as the attempt's defaults say
    matched: Matched | None = None
    relation: str | None = None
    unseen: Sequence[str] = ()

    def __init__(self, found: Found, pool: BufferPool, scopes: TensorScopes, lock: threading.RLock) -> None:
        self.found = found
        self.pool, self._scopes, self._lock = pool, scopes, lock
        self.replaced: dict[str, HostCopy] = {}
        self.declared: dict[str, HostCopy] = {}
        snapshot = found.snapshot
        if snapshot is not None:
            self.num_slots, self.size_bytes = snapshot.num_slots, snapshot.size_bytes
        else:
            self.num_slots = len(found.places)
            self.size_bytes = sum(each.size_bytes // max(1, each.num_slots) for each, _ in found.places)

    def tied(self, fed: Tensor) -> None:
        """The forward got the tokens as `fed`: keep in what form."""
        found, first = self.found, self.found.snapshots[0]
        form = list(found.form)
        dtype = str(fed.dtype).removeprefix("torch.")
        if dtype != str(first.copies[first.name].dtype).removeprefix("torch."):
            form.insert(0, f"dtype {dtype}")
        if first.columns is not None:
            form.append(_said(first.columns))
        if (found.width is not None and not found.cut) or first.columns is not None:
            self.matched = Matched.SLICE
        self.relation = "; ".join(form) or None

    def counted(self, seen: Seen | None) -> None:
        """A forward was counted for it: what that got was not seen, or was seen to be this."""
        names = [name for name in self.found.snapshots[0].copies if name != self.found.snapshots[0].name]
        if seen is None:
            self.evidence, self.matched, self.relation = Evidence.LOADER, Matched.COUNT, None
            self.unseen = names
        else:
            self.evidence, self.relation = None, seen.relation
            self.matched = None if seen.matched is Matched.WHOLE else seen.matched
            self.unseen = [name for name in names if name not in seen.tensors]

    def is_of_rows(self, name: str) -> bool:
        """Whether a tensor of the loader's can be looked at, row by row, or in one micro-batch that is consumed whole."""
        if not self.may_wait and any(name in each.copies and each.copies[name].late for each in self.found.snapshots):
            return False
        return self.found.snapshot is not None or all(
            name in each.copies and each.copies[name].shape[:1] == (each.num_slots,) for each in self.found.snapshots
        )

    def may_replace(self, name: str, fed: Tensor) -> bool:
        """Whether what a forward got under the name can be recorded in place of the loader's."""
        if self.found.snapshots[0].columns is not None:
            return False  # a part of it
        return fed.shape[:1] == (self.num_slots,) or not self.is_of_rows(name) or (
            self.found.snapshot is not None and self.found.snapshot.copies[name].shape[:1] != (self.num_slots,)
        )  # fmt: skip

    def in_shape_of(self, name: str, fed: Tensor) -> Tensor:
        """What a forward got under the name, in the loader's shape where it was flattened."""
        shape = self.found.snapshot.copies[name].shape if self.found.snapshot is not None else ()
        return fed.reshape(shape) if fed.numel() == math.prod(shape) and fed.shape[:1] != (self.num_slots,) else fed

    def value(self, name: str) -> Array:
        """What is to be recorded of a tensor of the loader's that `is_of_rows`."""
        value = self._whole_value(name)
        found = self.found
        if found.cut and value.ndim >= 2 and value.shape[1] == found.snapshots[0].sequence_length:
            return value[:, : found.width]
        return value

    def _whole_value(self, name: str) -> Array:
        found = self.found
        if found.snapshot is not None:
            return as_array(found.snapshot.tensor(name))
        snapshots = found.snapshots
        arrays = [as_array(each.tensor(name)) for each in snapshots]
        if any(array.ndim != arrays[0].ndim or array.shape[1:] != arrays[0].shape[1:] for array in arrays):
            raise ExportStopped(
                f"a forward got rows of {len(arrays)} micro-batches at once, whose {name!r} have the shapes "
                f"{', '.join(str(list(array.shape)) for array in arrays)}; wrap the loader after whatever joins them"
            )
        firsts = np.cumsum([0, *(each.num_slots for each in snapshots)])
        at = {id(each): int(first) for each, first in zip(snapshots, firsts, strict=False)}
        return np.concatenate(arrays)[[at[id(each)] + row for each, row in found.places]]

    def resolve(self) -> list[StagedMicrobatch]:
        """The micro-batch as arrays. Called once, on the writer thread."""
        found, first = self.found, self.found.snapshots[0]
        tokens = self.value(first.name)
        length = tokens.shape[1]
        tensors: dict[str, Array] = {}
        batch_tensors: dict[str, Array] = {}
        dtypes: dict[str, str] = {}

        def put(name: str, value: Array, dtype: str | None, *, whole: bool) -> None:
            (batch_tensors if whole else tensors)[name] = value
            if dtype is not None:
                dtypes[name] = dtype

        for number, snapshot in enumerate(found.snapshots):
            for name in snapshot.copies:
                if name in self.replaced or name in self.declared or name == snapshot.name:
                    continue
                tensor = snapshot.tensor(name)
                array, dtype = as_array(tensor), torch_dtype(tensor)
                if self._scopes.is_whole(name, array, snapshot.num_slots, snapshot.sequence_length):
                    put(name if number == 0 else f"{name}.{number}", array, dtype, whole=True)
                elif number == 0:
                    self._expect_everywhere(name)
                    put(name, self.value(name), dtype, whole=False)
        for name, copy in {**self.replaced, **self.declared}.items():
            tensor = copy.tensor()
            array = as_array(tensor)
            whole = self._scopes.is_whole(name, array, self.num_slots, length)
            put(name, array, torch_dtype(tensor), whole=whole)
        rows_of = _rows_of(found)
        tensor_evidence = dict.fromkeys(self.unseen, Evidence.LOADER)
        tensor_evidence.update(dict.fromkeys(self.declared, Evidence.DECLARED))
        tensor_evidence = {
            name: each for name, each in tensor_evidence.items() if name in tensors or name in batch_tensors
        }
        tensor_evidence["sample_start"] = Evidence.LOADER
        self.made = StagedMicrobatch(
            tokens=tokens,  # type: ignore[arg-type]
            tensors=tensors,
            batch_tensors=batch_tensors,
            segments=_joined([each.segments(rows, length) for each, rows in rows_of]) or (),
            sample_index=_joined([each.sample_index(rows) for each, rows in rows_of]),
            sample_start=_joined([each.sample_start(rows) for each, rows in rows_of]),
            dtypes=dtypes,
            evidence=self.evidence,
            matched=self.matched,
            relation=self.relation,
            tensor_evidence=tensor_evidence,
            tokens_key=first.name,
            release=self.release,
        )
        return [self.made]

    def declare_made(self, declared: Mapping[str, HostCopy]) -> None:
        """What the training used, known only when the arrays are made."""
        made = self.made
        if made is None:
            self.declared.update(declared)
            return
        tensors = {name: copy.tensor() for name, copy in declared.items()}
        self.declared.update(declared)
        made.tensors.update({name: as_array(tensor) for name, tensor in tensors.items()})  # type: ignore[attr-defined]
        made.dtypes.update({name: torch_dtype(tensor) for name, tensor in tensors.items() if torch_dtype(tensor)})  # type: ignore[attr-defined]
        made.tensor_evidence.update(dict.fromkeys(tensors, Evidence.DECLARED))  # type: ignore[attr-defined]

    def release(self) -> None:
        """Its arrays are not needed any more, or never will be."""
        self.made = None  # which holds this method
        for copy in (*self.replaced.values(), *self.declared.values()):
            if not copy.late:
                self.pool.give(copy)
        with self._lock:
            for snapshot in self.found.snapshots:
                snapshot.drop()

    def _expect_everywhere(self, name: str) -> None:
        for snapshot in self.found.snapshots:
            if name not in snapshot.copies:
                raise ExportStopped(
                    f"a forward got rows of several micro-batches at once, of which one has {name!r} and another has not; "
                    f"leave it out with hook.wrap(…, exclude=[{name!r}]), or wrap the loader after whatever joins them"
                )


class Recorded:
    """A forward whose own tensors are recorded, under their names. Implements `LateMicrobatch`.

    candidates: gives micro-batches, held, of which the rows may be, for their documents; a row is one of theirs where at
    least half of its tokens are, but for the one that it has most often. before: what forwards of this step got as the
    very same tensor, which this one repeats if it is equal.
    """

    late = False

    def __init__(
        self,
        tokens: str,
        copies: Mapping[str, HostCopy],
        candidates: Callable[[], list[Snapshot]],
        pool: BufferPool,
        scopes: TensorScopes,
        lock: threading.RLock,
        forget_before: Callable[[int], None],
        before: Sequence[HostCopy] = (),
    ) -> None:
        self._forget_before, self._before = forget_before, before
        self._tokens, self._copies, self._candidates, self._pool = tokens, copies, candidates, pool
        self._scopes, self._lock = scopes, lock
        self.declared: dict[str, HostCopy] = {}
        shape = copies[tokens].shape
        self.num_slots = 1 if len(shape) == 1 else int(shape[0])
        self.size_bytes = sum(copy.buffer.nbytes for copy in copies.values()) + 256 * self.num_slots

    def resolve(self) -> list[StagedMicrobatch]:
        """The micro-batch as arrays. Called once, on the writer thread."""
        fed = self._copies[self._tokens].tensor()
        if any(equal_bits(known.tensor(), fed) for known in self._before):
            self._copies = {name: copy for name, copy in self._copies.items() if name != self._tokens}
            self.release()  # but for the tokens, which later ones may be compared with
            return []
        tokens = as_array(fed)
        tokens = tokens[None] if tokens.ndim == 1 else tokens
        tensors: dict[str, Array] = {}
        batch_tensors: dict[str, Array] = {}
        dtypes: dict[str, str] = {}
        for name, copy in {**self._copies, **self.declared}.items():
            if name == self._tokens:
                continue
            tensor = copy.tensor()
            array = as_array(tensor)
            whole = self._scopes.is_whole(name, array, *tokens.shape)
            (batch_tensors if whole else tensors)[name] = array
            dtype = torch_dtype(tensor)
            if dtype is not None:
                dtypes[name] = dtype
        fetched = self._candidates()
        places = self._places(tokens, fetched)
        with self._lock:
            for snapshot, row in (place for place in places if place is not None):
                if snapshot.uses is None:
                    snapshot.uses = np.zeros(snapshot.num_slots, np.int64)
                snapshot.uses[row] = 1
        numbers = [place[0].number for place in places if place is not None]
        if numbers:
            self._forget_before(min(numbers))
        segments, index, start = _documents_of(places, tokens.shape[1])
        with self._lock:
            for snapshot in fetched:
                snapshot.drop()
        return [
            StagedMicrobatch(
                tokens=tokens,  # type: ignore[arg-type]
                tensors=tensors,
                batch_tensors=batch_tensors,
                segments=segments,
                sample_index=index,
                sample_start=start,
                dtypes=dtypes,
                tensor_evidence={"sample_start": Evidence.LOADER, **dict.fromkeys(self.declared, Evidence.DECLARED)},
                tokens_key=self._tokens,
                release=self.release,
            )
        ]

    def release(self) -> None:
        """Its arrays are not needed any more, or never will be."""
        for copy in (*self._copies.values(), *self.declared.values()):
            if not copy.late:
                self._pool.give(copy)

    def _places(self, tokens: Array, fetched: Sequence[Snapshot]) -> list[tuple[Snapshot, int] | None]:
        """Of each row the fetched row that it is, changed or not: of those that nobody was yet, then of the others."""
        found: list[tuple[Snapshot, int] | None] = [None] * len(tokens)
        for claimed in (False, True):
            for snapshot in fetched if not claimed else reversed(fetched):
                if all(place is not None for place in found):
                    return found
                free = [row for row in range(snapshot.num_slots) if bool(snapshot.free_rows()[row]) is not claimed]
                self._find_among(snapshot, free, tokens, found)
        return found

    def _find_among(
        self, snapshot: Snapshot, rows: list[int], tokens: Array, found: list[tuple[Snapshot, int] | None]
    ) -> None:
        ours = snapshot.tokens()
        width = min(ours.shape[1], tokens.shape[1])
        for at, row in enumerate(tokens):
            if found[at] is not None or not rows:
                continue
            values, counts = np.unique(row[:width], return_counts=True)
            telling = row[:width] != values[np.argmax(counts)]  # not the padding, nor the mask
            if not telling.any():
                telling = np.ones(width, bool)
            equal = (ours[rows, :width][:, telling] == row[:width][telling]).sum(axis=1)
            best = int(np.argmax(equal))
            if equal[best] * 2 >= telling.sum():
                found[at] = (snapshot, rows.pop(best))


def _documents_of(
    places: Sequence[tuple[Snapshot, int] | None], length: int
) -> tuple[tuple[tuple[Segment, ...], ...], list[int] | None, list[int] | None]:
    """Segments, sample indices and starts of rows; a row that is nobody's has no segments, and then no row has an index."""
    segments: list[tuple[Segment, ...]] = []
    for place in places:
        of_row = None if place is None else place[0].segments([place[1]], length)
        segments.append(of_row[0] if of_row else ())
    known = [place for place in places if place is not None]
    index = start = None
    if len(known) == len(places):
        index = _joined([each.sample_index([row]) for each, row in known])
        start = _joined([each.sample_start([row]) for each, row in known])
    return tuple(segments) if any(segments) else (), index, start


def _rows_of(found: Found) -> list[tuple[Snapshot, list[int] | None]]:
    """The rows in their order, as stretches of one micro-batch each; None for all rows of it."""
    if found.snapshot is not None:
        return [(found.snapshot, None)]
    stretches: list[tuple[Snapshot, list[int]]] = []
    for snapshot, row in found.places:
        if not stretches or stretches[-1][0] is not snapshot:
            stretches.append((snapshot, []))
        stretches[-1][1].append(row)
    return list(stretches)


def _joined(parts: Sequence[Sequence[T] | None]) -> list[T] | None:
    if any(part is None for part in parts):
        return None
    return [item for part in parts if part is not None for item in part]


def _said(columns: slice | Sequence[int]) -> str:
    if isinstance(columns, slice):
        ends = ["" if end is None else str(end) for end in (columns.start, columns.stop)]
        return f"[:, {':'.join(ends)}]" if columns.step in (None, 1) else f"[:, {':'.join(ends)}:{columns.step}]"
    stretches: list[list[int]] = []
    for column in columns:
        if stretches and column == stretches[-1][1]:
            stretches[-1][1] += 1
        else:
            stretches.append([int(column), int(column) + 1])
    return "[:, " + "+".join(f"{first}:{last}" for first, last in stretches) + "]"


def in_other_form(ours: Array, theirs: Array, *, sliced: bool = False) -> bool:
    """Whether a forward got `ours` as `theirs`: in another shape or integer dtype, or (sliced) without its first or last
    column."""
    if theirs.size == ours.size:
        return _same_numbers(ours, theirs.reshape(ours.shape))
    if sliced and ours.ndim >= 2 and theirs.ndim == ours.ndim and theirs.shape[1] == ours.shape[1] - 1:
        return theirs.shape[0] == ours.shape[0] and (
            _same_numbers(ours[:, :-1], theirs) or _same_numbers(ours[:, 1:], theirs)
        )
    return False


def _same_numbers(ours: Array, theirs: Array) -> bool:
    if ours.shape != theirs.shape:
        return False
    if ours.dtype == theirs.dtype:
        return ours.tobytes() == theirs.tobytes()
    return ours.dtype.kind in "iu" and theirs.dtype.kind in "iu" and bool(np.array_equal(ours, theirs))
