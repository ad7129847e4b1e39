"""The hook's own copy of a micro-batch, taken as it is fetched: loaders reuse buffers, trainers edit batches in place.

It also remembers which tensors it was taken from, so that a forward's tensors can be recognised and compared where they
live.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from train_hooks.export_format.records import Matched, Segment
from train_hooks.export_format.tensors import bits_dtype
from train_hooks.hook.tensors.batches import NamedMicrobatch
from train_hooks.hook.tensors.host_copies import BufferPool, HostCopy, copy_narrowed, copy_tensor

__all__ = ["Columns", "Observation", "Snapshot", "as_array", "equal_bits", "torch_dtype"]

Array = npt.NDArray[np.generic]
Columns = slice | Sequence[int] | None
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Snapshot:
    """One fetched micro-batch: the trainer's tensors, to know them again, and our copies of them.

    number: its place in the order of fetching, from 1. tokens_name: the name of its token tensor. tokens_address, tokens_id:
    where the trainer's tokens were, and which tensor they were. sources: the trainer's tensors; names_by_id: their names.
    copies: our copies of them. columns: what the forward gets of each row; None: all of it. documents_only: its tensors
    are not recorded, since the forward's are. consumed_by: for each row 0 while it is free, else the serial number of the
    step that consumed it; None while all are free. observation, observed_rows: how a forward got it, and which rows some
    forward got, where micro-batches are counted. num_holders: how many still need the copies.
    """

    __slots__ = (
        "_array",
        "_pool",
        "_sample_index",
        "_sample_start",
        "_segments",
        "_shapes",
        "columns",
        "consumed_by",
        "copies",
        "documents_only",
        "names_by_id",
        "num_holders",
        "num_slots",
        "number",
        "observation",
        "observed_rows",
        "sequence_length",
        "size_bytes",
        "sources",
        "tokens_address",
        "tokens_id",
        "tokens_name",
    )  # fmt: skip

    def __init__(
        self, batch: NamedMicrobatch, pool: BufferPool, columns: Columns = None, *, documents_only: bool = False
    ) -> None:
        self.number = 0
        self.tokens_name, tensors, segments, index, start = batch
        if documents_only:
            tensors = {self.tokens_name: tensors[self.tokens_name]}
        self.sources: Mapping[str, Tensor] = tensors
        self.columns, self.documents_only = columns, documents_only
        self.num_slots, self.sequence_length = tensors[self.tokens_name].shape
        self._pool = pool
        self._array: Array | None = None
        self.tokens_address = tensors[self.tokens_name].data_ptr()
        self.tokens_id = id(tensors[self.tokens_name])
        self.consumed_by: npt.NDArray[np.int64] | None = None
        self.observation: Any = None  # an Observation, or a deferred one
        self.observed_rows: frozenset[int] = frozenset()
        self.num_holders = 1
        self._segments: tuple[tuple[Segment, ...], ...] = ()
        if segments is not None:
            self._segments = tuple(tuple(of_slot) for of_slot in segments)
        self._sample_index = None if index is None else _copied(index, pool)
        self._sample_start = None if start is None else _copied(start, pool)
        self.copies = _copy_all(tensors, pool)
        size_bytes = 256 * self.num_slots
        self._shapes, self.names_by_id = {}, {}
        for name, tensor in tensors.items():
            self._shapes[name] = tensor.shape
            self.names_by_id[id(tensor)] = name
            size_bytes += self.copies[name].buffer.nbytes
        self.size_bytes = size_bytes

    @property
    def tokens_ready(self) -> bool:
        """Whether the tokens can be looked at without waiting for a device."""
        return self.copies[self.tokens_name].wait is None

    def is_unchanged(self, names: Sequence[str]) -> bool:
        """Whether the trainer's tensors of these names, on the CPU, still are what was copied: all bytes compared."""
        compared: Tensor | None = None
        for name in names:
            source, copy = self.sources[name], self.copies[name]
            if source.shape != self._shapes[name]:
                return False  # given other memory by `set_` or `data`
            if not copy.narrowed:
                if not equal_bits(copy.tensor(), source):
                    return False
            elif source.dtype is not torch.int64:
                return False
            elif copy.view is None:
                if not source.is_contiguous() or not self._pool.kernels.same(
                    source.data_ptr(), copy.address, copy.numel
                ):
                    return False
            elif copy.buffer is not compared:  # one storage of several views, compared at once
                storage = source.untyped_storage()
                fits = storage.nbytes() == copy.numel * 8 and source.stride() == copy.view[1]
                if fits and self._pool.kernels.same(storage.data_ptr(), copy.address, copy.numel):
                    compared = copy.buffer
                elif not equal_bits(copy.tensor(), source):
                    return False
        return True

    def refresh_copies(self) -> None:
        """Copy again what the trainer changed in place since the last copy."""
        changed = {
            name: source for name, source in self.sources.items() if source.is_cpu and not self.is_unchanged([name])
        }
        buffers = [self.copies[name].buffer for name in changed]
        sharing = {
            name: self.sources[name]
            for name, copy in self.copies.items()
            if any(copy.buffer is buffer for buffer in buffers)
        }
        old = [copy for copy in _distinct(self.copies) if any(copy.buffer is buffer for buffer in buffers)]
        self.copies.update(_copy_all(sharing, self._pool))
        for copy in old:
            if copy.wait is None:  # else a device may still write to it
                self._pool.give(copy)
        tokens = self.sources[self.tokens_name]
        self._array = None
        self.num_slots, self.sequence_length = tokens.shape
        self._shapes = {name: source.shape for name, source in self.sources.items()}

    def tokens(self) -> Array:
        """Integers [num_slots, sequence_length]; waits for a device's copy. Whoever keeps them keeps a holder."""
        if self._array is None:
            self._array = self.copies[self.tokens_name].values().numpy()
        return self._array

    def forward_tokens(self) -> Array:
        """The columns of the tokens that the forward gets."""
        return self.tokens() if self.columns is None else self.tokens()[:, self.columns]

    def tensor(self, name: str) -> Tensor:
        """Our copy of one of its tensors, in the dtype that it had; waits for a device's copy."""
        return self.copies[name].tensor()

    def wait(self) -> None:
        """Until the tokens are in CPU memory. For the writer thread."""
        if self.copies:
            self.tokens()

    def free_rows(self) -> npt.NDArray[np.bool_]:
        """Which rows no forward has got yet."""
        return np.ones(self.num_slots, bool) if self.consumed_by is None else self.consumed_by == 0

    def segments(self, rows: Sequence[int] | None, length: int) -> tuple[tuple[Segment, ...], ...] | None:
        """The documents of these rows (None: of all), cut to `length` tokens; None where they are unknown."""
        if not self._segments:
            return None
        chosen = self._segments if rows is None else tuple(self._segments[row] for row in rows)
        return chosen if length >= self.sequence_length else tuple(_truncated(of_slot, length) for of_slot in chosen)

    def sample_index(self, rows: Sequence[int] | None) -> list[int] | None:
        """The sample of each of these rows (None: of all), where the loader said it."""
        return _integers(self._sample_index, rows)

    def sample_start(self, rows: Sequence[int] | None) -> list[int] | None:
        """Where each of these rows (None: all) begins in its sample."""
        return _integers(self._sample_start, rows)

    def forget_sources(self) -> None:
        """Let go of the trainer's tensors."""
        self.sources, self.names_by_id = {}, {}

    def release(self) -> None:
        """One holder less; after the last one, the memory of the copies goes back to the pool. Call it under the lock."""
        self.num_holders -= 1
        if self.num_holders:
            return
        copies, self.copies, self._array = self.copies, {}, None
        for copy in _distinct(copies):
            if copy.wait is None:
                self._pool.give(copy)


class Observation:
    """How a forward got a counted micro-batch. tensors: names of the other tensors that it was seen to get."""

    __slots__ = ("matched", "relation", "tensors")

    def __init__(self, matched: Matched, relation: str | None, tensors: Sequence[str]) -> None:
        self.matched, self.relation, self.tensors = matched, relation, tensors


def _distinct(copies: Mapping[str, HostCopy]) -> list[HostCopy]:
    return list({id(copy.buffer): copy for copy in copies.values()}.values())


def _truncated(of_slot: tuple[Segment, ...], length: int) -> tuple[Segment, ...]:
    return tuple(
        segment if segment.start + segment.length <= length else replace(segment, length=length - segment.start)
        for segment in of_slot
        if segment.start < length
    )


def _copied(of_slots: Any, pool: BufferPool) -> Any:
    """A copy that the loader does not write to."""
    return copy_tensor(of_slots, pool) if isinstance(of_slots, Tensor) else np.array(of_slots, object)


def _integers(of_slots: HostCopy | Sequence[int] | None, rows: Sequence[int] | None) -> list[int] | None:
    if of_slots is None:
        return None
    values = of_slots.tensor().tolist() if isinstance(of_slots, HostCopy) else of_slots
    return [int(values[row]) for row in (range(len(values)) if rows is None else rows)]


def _copy_all(tensors: Mapping[str, Tensor], pool: BufferPool) -> dict[str, HostCopy]:
    copies: dict[str, HostCopy] = {}
    views: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        narrowed = copy_narrowed(tensor, pool)
        if narrowed is not None:
            copies[name] = narrowed
        elif tensor.layout is not torch.strided:
            copies[name] = copy_tensor(tensor.to_dense(), pool)
        elif tensor.is_cpu and not tensor.is_contiguous() and not tensor.is_conj():
            views.setdefault(tensor.untyped_storage().data_ptr(), {})[name] = tensor
        else:
            copies[name] = copy_tensor(tensor, pool)
    for sharing in views.values():
        if _is_compact(list(sharing.values())):
            copies.update(_copy_storage(sharing, pool))
        else:
            copies.update({name: copy_tensor(tensor, pool) for name, tensor in sharing.items()})
    return copies


def _is_compact(views: list[Tensor]) -> bool:
    """Whether their storage is not much more than what they show, and one copy of it is less than one of each."""
    whole, shown = views[0].untyped_storage().nbytes(), sum(view.nbytes for view in views)
    return whole * 4 < shown * 3 and len({view.dtype for view in views}) == 1


def _copy_storage(views: Mapping[str, Tensor], pool: BufferPool) -> dict[str, HostCopy]:
    first = next(iter(views.values()))
    numel = first.untyped_storage().nbytes() // first.element_size()
    whole = first.detach().as_strided((numel,), (1,), 0)
    copy = copy_narrowed(whole, pool) or copy_tensor(whole, pool)
    return {
        name: replace(copy, view=(tuple(view.shape), view.stride(), int(view.storage_offset())))
        for name, view in views.items()
    }


def torch_dtype(tensor: Tensor) -> str | None:
    """The name of a dtype that numpy lacks, else None."""
    name = str(tensor.dtype).removeprefix("torch.")
    return None if bits_dtype(name) is None else name


def as_array(tensor: Tensor) -> Array:
    """A tensor on the CPU as numpy has it; of a dtype that numpy lacks, its bits."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return tensor.numpy() if torch_dtype(tensor) is None else _bits(tensor)


def equal_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors on the CPU have one dtype, one shape and the same bits."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if other.layout is not torch.strided:
        other = other.to_dense()
    return bool(np.array_equal(_bits(one), _bits(other)))


def _bits(tensor: Tensor) -> Array:
    bits = tensor.detach().resolve_conj().resolve_neg().contiguous()
    if bits.is_complex():
        bits = torch.view_as_real(bits) if bits.dtype is not torch.complex32 else bits
    return bits.view(_BITS.get(bits.element_size(), torch.uint8)).numpy()
