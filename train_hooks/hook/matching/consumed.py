"""What a forward consumed, on its way to the writer thread, which makes arrays of it."""

import math
import threading
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

from train_hooks.export_format.errors import ExportStopped
from train_hooks.export_format.records import Evidence, Matched
from train_hooks.hook.export.staging import StagedMicrobatch
from train_hooks.hook.matching.match_tokens import RowMatch
from train_hooks.hook.tensors.host_copies import BufferPool, HostCopy
from train_hooks.hook.tensors.scopes import TensorScopes
from train_hooks.hook.tensors.snapshots import Array, Observation, Snapshot, as_array, torch_dtype

__all__ = ["ConsumedRows", "concatenated"]

T = TypeVar("T")


class ConsumedRows:
    """Rows of fetched micro-batches as one forward got them. Implements `DeferredMicrobatch`.

    may_wait: whether copies that a device still makes may be waited for, to compare them. repeated: whether a forward of
    the step got these rows before. evidence: None where it is as the attempt's defaults say. unseen: names of tensors that
    the forward was not seen to get, so that they are recorded as the loader yielded them. replaced: what the forward got
    under a name where that is not what the loader yielded. declared: what the trainer says that it used.
    """

    must_resolve = False
    may_wait = True
    repeated = False
    resolved: StagedMicrobatch | None = None
    evidence: Evidence | None = None
    matched: Matched | None = None
    relation: str | None = None
    unseen: Sequence[str] = ()

    def __init__(self, match: RowMatch, pool: BufferPool, scopes: TensorScopes, lock: threading.RLock) -> None:
        self.match = match
        self.pool, self._scopes, self._lock = pool, scopes, lock
        self.replaced: dict[str, HostCopy] = {}
        self.declared: dict[str, HostCopy] = {}
        snapshot = match.whole
        if snapshot is not None:
            self.num_slots, self.size_bytes = snapshot.num_slots, snapshot.size_bytes
        else:
            self.num_slots = len(match.rows)
            self.size_bytes = sum(each.size_bytes // max(1, each.num_slots) for each, _ in match.rows)

    def note_form(self, tokens: Tensor) -> None:
        """Keep in what form the forward got the tokens: `relation` and `matched`."""
        match, first = self.match, self.match.snapshots[0]
        form = list(match.form)
        dtype = str(tokens.dtype).removeprefix("torch.")
        if dtype != str(first.copies[first.tokens_name].dtype).removeprefix("torch."):
            form.insert(0, f"dtype {dtype}")
        if first.columns is not None:
            form.append(_columns_text(first.columns))
        if (match.width is not None and not match.truncated) or first.columns is not None:
            self.matched = Matched.SLICE
        self.relation = "; ".join(form) or None

    def note_observation(self, observation: Observation | None) -> None:
        """A forward was counted for it: what that got was not seen, or it was observed to be this."""
        first = self.match.snapshots[0]
        names = [name for name in first.copies if name != first.tokens_name]
        if observation is None:
            self.evidence, self.matched, self.relation = Evidence.LOADER, Matched.COUNT, None
            self.unseen = names
        else:
            self.evidence, self.relation = None, observation.relation
            self.matched = None if observation.matched is Matched.WHOLE else observation.matched
            self.unseen = [name for name in names if name not in observation.tensors]

    def is_comparable(self, name: str) -> bool:
        """Whether the loader's tensor of this name can be compared: it has rows, or one micro-batch was consumed whole."""
        snapshots = self.match.snapshots
        if not self.may_wait and any(name in each.copies and each.copies[name].in_flight for each in snapshots):
            return False
        return self.match.whole is not None or all(
            name in each.copies and each.copies[name].shape[:1] == (each.num_slots,) for each in snapshots
        )

    def may_replace(self, name: str, tensor: Tensor) -> bool:
        """Whether what a forward got under the name can be recorded in place of the loader's."""
        if self.match.snapshots[0].columns is not None:
            return False  # a part of it
        return tensor.shape[:1] == (self.num_slots,) or not self.is_comparable(name) or (
            self.match.whole is not None and self.match.whole.copies[name].shape[:1] != (self.num_slots,)
        )  # fmt: skip

    def unflattened(self, name: str, tensor: Tensor) -> Tensor:
        """What a forward got under the name, in the loader's shape where it was flattened."""
        shape = self.match.whole.copies[name].shape if self.match.whole is not None else ()
        flattened = tensor.numel() == math.prod(shape) and tensor.shape[:1] != (self.num_slots,)
        return tensor.reshape(shape) if flattened else tensor

    def loader_value(self, name: str) -> Array:
        """The loader's tensor of this name, which `is_comparable`, of the consumed rows as they are recorded."""
        value = self._untruncated_value(name)
        match = self.match
        if match.truncated and value.ndim >= 2 and value.shape[1] == match.snapshots[0].sequence_length:
            return value[:, : match.width]
        return value

    def _untruncated_value(self, name: str) -> Array:
        match = self.match
        if match.whole is not None:
            return as_array(match.whole.tensor(name))
        snapshots = match.snapshots
        arrays = [as_array(each.tensor(name)) for each in snapshots]
        if any(array.ndim != arrays[0].ndim or array.shape[1:] != arrays[0].shape[1:] for array in arrays):
            raise ExportStopped(
                f"a forward got rows of {len(arrays)} micro-batches at once, whose {name!r} have the shapes "
                f"{', '.join(str(list(array.shape)) for array in arrays)}; wrap the loader after whatever joins them"
            )
        firsts = np.cumsum([0, *(each.num_slots for each in snapshots)])
        first_row = {id(each): int(first) for each, first in zip(snapshots, firsts, strict=False)}
        return np.concatenate(arrays)[[first_row[id(each)] + row for each, row in match.rows]]

    def resolve(self) -> list[StagedMicrobatch]:
        """The micro-batch as arrays. Called once, on the writer thread."""
        match, first = self.match, self.match.snapshots[0]
        tokens = self.loader_value(first.tokens_name)
        length = tokens.shape[1]
        tensors: dict[str, Array] = {}
        batch_tensors: dict[str, Array] = {}
        dtypes: dict[str, str] = {}

        def put(name: str, value: Array, dtype: str | None, *, whole: bool) -> None:
            (batch_tensors if whole else tensors)[name] = value
            if dtype is not None:
                dtypes[name] = dtype

        for number, snapshot in enumerate(match.snapshots):
            for name in snapshot.copies:
                if name in self.replaced or name in self.declared or name == snapshot.tokens_name:
                    continue
                tensor = snapshot.tensor(name)
                array, dtype = as_array(tensor), torch_dtype(tensor)
                if self._scopes.is_whole(name, array, snapshot.num_slots, snapshot.sequence_length):
                    put(name if number == 0 else f"{name}.{number}", array, dtype, whole=True)
                elif number == 0:
                    self._expect_in_every_microbatch(name)
                    put(name, self.loader_value(name), dtype, whole=False)
        for name, copy in {**self.replaced, **self.declared}.items():
            tensor = copy.tensor()
            array = as_array(tensor)
            whole = self._scopes.is_whole(name, array, self.num_slots, length)
            put(name, array, torch_dtype(tensor), whole=whole)
        stretches = _stretches(match)
        self.resolved = StagedMicrobatch(
            tokens=tokens,  # type: ignore[arg-type]
            tensors=tensors,
            batch_tensors=batch_tensors,
            segments=concatenated([each.segments(rows, length) for each, rows in stretches]) or (),
            sample_index=concatenated([each.sample_index(rows) for each, rows in stretches]),
            sample_start=concatenated([each.sample_start(rows) for each, rows in stretches]),
            dtypes=dtypes,
            evidence=self.evidence,
            matched=self.matched,
            relation=self.relation,
            tensor_evidence=self._tensor_evidence({*tensors, *batch_tensors}),
            tokens_key=first.tokens_name,
            release=self.release,
        )
        return [self.resolved]

    def _tensor_evidence(self, recorded: set[str]) -> dict[str, Evidence]:
        evidence = dict.fromkeys(self.unseen, Evidence.LOADER)
        evidence.update(dict.fromkeys(self.declared, Evidence.DECLARED))
        return {
            **{name: each for name, each in evidence.items() if name in recorded}, "sample_start": Evidence.LOADER
        }  # fmt: skip

    def add_declared(self, declared: Mapping[str, HostCopy]) -> None:
        """What the trainer says that it used, which may come after the arrays were made."""
        self.declared.update(declared)
        resolved = self.resolved
        if resolved is None:
            return
        tensors = {name: copy.tensor() for name, copy in declared.items()}
        resolved.tensors.update({name: as_array(tensor) for name, tensor in tensors.items()})  # type: ignore[attr-defined]
        resolved.dtypes.update({name: torch_dtype(tensor) for name, tensor in tensors.items() if torch_dtype(tensor)})  # type: ignore[attr-defined]
        resolved.tensor_evidence.update(dict.fromkeys(tensors, Evidence.DECLARED))  # type: ignore[attr-defined]

    def release(self) -> None:
        """Its arrays are not needed any more, or never will be."""
        self.resolved = None  # which holds this method
        for copy in (*self.replaced.values(), *self.declared.values()):
            if not copy.in_flight:
                self.pool.give(copy)
        with self._lock:
            for snapshot in self.match.snapshots:
                snapshot.release()

    def _expect_in_every_microbatch(self, name: str) -> None:
        for snapshot in self.match.snapshots:
            if name not in snapshot.copies:
                raise ExportStopped(
                    f"a forward got rows of several micro-batches at once, of which one has {name!r} and another has not; "
                    f"leave it out with hook.wrap(…, exclude=[{name!r}]), or wrap the loader after whatever joins them"
                )


def _stretches(match: RowMatch) -> list[tuple[Snapshot, list[int] | None]]:
    """The rows in their order, as stretches of one micro-batch each; None for all rows of it."""
    if match.whole is not None:
        return [(match.whole, None)]
    stretches: list[tuple[Snapshot, list[int]]] = []
    for snapshot, row in match.rows:
        if not stretches or stretches[-1][0] is not snapshot:
            stretches.append((snapshot, []))
        stretches[-1][1].append(row)
    return list(stretches)


def concatenated(lists: Sequence[Sequence[T] | None]) -> list[T] | None:
    """All items as one list; None where one of the lists is unknown."""
    if any(each is None for each in lists):
        return None
    return [item for each in lists if each is not None for item in each]


def _columns_text(columns: slice | Sequence[int]) -> str:
    """The columns as a record's `relation` says them: `[:, :8]`, `[:, 0:4+12:16]`."""
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
