"""The hook's own copy of a micro-batch, taken as it is fetched: loaders reuse buffers, trainers edit batches in place.

It also remembers which tensors it was taken from, so that a forward's tensors can be recognised without comparing them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from train_hooks.batches import NamedTensors
from train_hooks.export_format.records import Evidence, Matched, Segment
from train_hooks.export_format.tensors import bits_dtype
from train_hooks.exporter import StagedMicrobatch
from train_hooks.host_copies import BufferPool, HostCopy, copy_narrowed, copy_tensor
from train_hooks.tensor_scopes import TensorScopes

__all__ = ["Snapshot", "tokens_digest"]

Array = npt.NDArray[np.generic]
_SAMPLES = 2  # of each sequence
_UNCOUNTED = -1  # the version of a tensor of inference mode
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _identity(tensor: Tensor) -> tuple[int, int]:
    """Which tensor this is and how often it was changed. Holds for as long as somebody keeps the tensor."""
    return tensor.data_ptr(), _UNCOUNTED if tensor.is_inference() else tensor._version


class Snapshot:
    """One fetched micro-batch: the trainer's tensors, to know them again, and our copies of them.

    Implements `LateMicrobatch`: the arrays are made on the writer thread.
    """

    __slots__ = (
        "_array", "_copies", "_identities", "_pool", "_refreshed", "_sample_index", "_sample_start", "_scopes",
        "_segments", "_shape", "evidence", "matched", "name",
        "num_slots", "number", "relation", "sequence_length", "size_bytes", "sources",
    )  # fmt: skip

    def __init__(self, batch: NamedTensors, pool: BufferPool, scopes: TensorScopes | None = None) -> None:
        self.number = 0
        self.evidence: Evidence | None = None  # None: as the attempt's defaults say
        self.matched: Matched | None = None
        self.relation: str | None = None
        self._refreshed: list[str] = []
        self._scopes = scopes or TensorScopes({})
        self.name, tensors, segments, index, start = batch
        self.sources: Mapping[str, Tensor] = tensors
        self._shape = tensors[self.name].shape
        self.num_slots, self.sequence_length = self._shape
        self._pool = pool
        self._array: Array | None = None
        self._segments: tuple[tuple[Segment, ...], ...] = ()
        if segments is not None:
            self._segments = tuple(tuple(of_slot) for of_slot in segments)
        self._sample_index = copy_tensor(index, pool) if isinstance(index, Tensor) else index
        self._sample_start = start if start is None or not isinstance(start, Tensor) else copy_tensor(start, pool)
        self._identities = {name: _identity(tensor) for name, tensor in tensors.items()}
        self._copies = _copy_all(tensors, pool)
        size_bytes = 256 * self.num_slots
        for copy in self._copies.values():
            size_bytes += copy.buffer.nbytes
        self.size_bytes = size_bytes

    @property
    def on_cpu(self) -> bool:
        """Whether the tokens can be looked at without waiting for a device."""
        return self._copies[self.name].wait is None

    def could_be(self, fed: Tensor) -> bool:
        """Whether `fed` has the shape of the tokens, of them flattened, or of all but the last of each sequence."""
        if fed.numel() == self.num_slots * self.sequence_length:
            return True
        return self.sequence_length > 1 and fed.shape == (self.num_slots, self.sequence_length - 1)

    def same_tensor(self, fed: Tensor, *, changed: bool = False) -> bool:
        """Whether `fed` is the very tensor that was fetched, unchanged as far as torch knows (or `changed` since)."""
        pointer, version = self._identities[self.name]
        if fed.data_ptr() != pointer:
            return False
        source = self.sources[self.name]
        if fed.dtype != source.dtype or fed.device != source.device:
            return False
        return changed or fed.is_inference() or fed._version == version

    def is_untouched(self) -> bool:
        """Fast and sure only if True: nothing of the micro-batch was changed since it was fetched."""
        name, identities = self.name, self._identities
        source = self.sources[name]
        address = source.data_ptr()
        if address != identities[name][0] or source.shape != self._shape:
            return False  # given other memory by `set_` or `data`
        for other_name, other in self.sources.items():
            version = identities[other_name][1]
            if version == _UNCOUNTED or other._version != version:
                return False
        copy = self._copies[name]
        if copy.narrowed and copy.view is None:
            step = self.sequence_length // _SAMPLES or 1
            return self._pool.kernels.alike(address, copy.address, self.num_slots, self.sequence_length, step)
        return type(source) is Tensor and source.is_cpu and source.layout is torch.strided and self.looks_like(source)

    def looks_like(self, fed: Tensor) -> bool:
        """Whether a few tokens of each sequence are those of `fed`, which `could_be` it, on the CPU."""
        ours, theirs = self._arrays(fed)
        step = ours.shape[1] // _SAMPLES or 1
        if ours.dtype == theirs.dtype:
            return ours[:, ::step].tobytes() == theirs[:, ::step].tobytes()
        return bool((ours[:, ::step] == theirs[:, ::step]).all())

    def equals(self, fed: Tensor) -> bool:
        """Whether all tokens are those of `fed`, which `could_be` it, on the CPU."""
        ours, theirs = self._arrays(fed)
        return bool(np.array_equal(ours, theirs))

    def _arrays(self, fed: Tensor) -> tuple[Array, Array]:
        if self._array is None:
            self._array = self._copies[self.name].values().numpy()
        ours, theirs = self._array, fed.numpy()
        if theirs.shape == ours.shape:
            return ours, theirs
        if theirs.size == ours.size:
            return ours, theirs.reshape(ours.shape)
        return ours[:, : theirs.shape[1]], theirs

    def refresh(self, fed: Sequence[object]) -> None:
        """Copy again what the trainer changed in place between fetch and forward, where the forward got it."""
        for name, (pointer, version) in self._identities.items():
            source = self.sources[name]
            if source.is_inference() or source._version == version:
                continue
            given = [value for value in fed if isinstance(value, Tensor) and value.device == source.device]
            same = [tensor for tensor in given if tensor.data_ptr() == pointer]
            if same:
                self.copy_again(name)
            if any(tensor.shape == source.shape and tensor.stride() == source.stride() for tensor in same):
                self._refreshed.append(name)

    def counted(self) -> None:
        """A forward was counted for it, and what it got was not seen."""
        self.evidence, self.matched, self.relation = Evidence.LOADER, Matched.COUNT, None

    def fed_as(self, fed: Tensor) -> None:
        """The forward got its tokens as `fed`, which is equal to them: keep in what the two differ."""
        if fed is self.sources.get(self.name):
            return
        source = self._copies[self.name]
        dtype = torch.int64 if source.narrowed else source.buffer.dtype
        found = [f"dtype {str(fed.dtype).removeprefix('torch.')}"] if fed.dtype != dtype else []
        if fed.shape == (self.num_slots, self.sequence_length - 1):
            self.matched = Matched.SLICE
            found.append("[:, :-1]")
        elif fed.shape != self._shape:
            found.append("flatten" if fed.ndim == 1 else f"shape {list(fed.shape)}")
        self.relation = "; ".join(found) or None

    def copy_again(self, name: str) -> None:
        """Replace our copy of a tensor, and of those that share its memory, by one of what the trainer's holds now."""
        old = self._copies[name]
        sharing = {other: self.sources[other] for other, copy in self._copies.items() if copy.buffer is old.buffer}
        self._array = None
        self._copies.update(_copy_all(sharing, self._pool))
        if old.wait is None:  # else a device may still write to it
            self._pool.give(old)
        self._identities[name] = _identity(self.sources[name])

    def differing(self, named: Mapping[str, Tensor]) -> str | None:
        """Name of the first of `named` (CPU) that is one of ours by name and shape, and differs in its bytes."""
        for name, fed in named.items():
            copy = self._copies.get(name)
            source = self.sources.get(name)
            if copy is None or source is None or not fed.is_cpu or fed.shape != source.shape:
                continue
            if not np.array_equal(_bits(copy.tensor()), _bits(fed.detach().to(source.dtype))):
                return name
        return None

    def wait(self) -> None:
        """Until the tokens are in CPU memory. For the writer thread."""
        self._copies[self.name].tensor()

    def digest(self) -> bytes:
        """Of the tokens as int64, to know them again when our copy is gone."""
        return tokens_digest(self._copies[self.name].tensor())

    def forget_sources(self) -> None:
        """Let go of the trainer's tensors."""
        self.sources = {}

    def resolve(self) -> StagedMicrobatch:
        """The micro-batch as arrays. Called once, on the writer thread."""
        tensors: dict[str, Array] = {}
        batch_tensors: dict[str, Array] = {}
        dtypes: dict[str, str] = {}
        for name, copy in self._copies.items():
            if name == self.name:
                continue
            tensor = copy.tensor()
            if _has_numpy(tensor.dtype):
                value = tensor.numpy()
            else:
                value, dtypes[name] = _bits(tensor), str(tensor.dtype).removeprefix("torch.")
            whole = self._scopes.is_whole(name, value, self.num_slots, self.sequence_length)
            (batch_tensors if whole else tensors)[name] = value
        return StagedMicrobatch(
            tokens=self._copies[self.name].tensor().numpy(),
            tensors=tensors,
            batch_tensors=batch_tensors,
            segments=self._segments,
            sample_index=_integers(self._sample_index),
            sample_start=_integers(self._sample_start),
            dtypes=dtypes,
            evidence=self.evidence,
            matched=self.matched,
            relation=self.relation,
            tensor_evidence=dict.fromkeys(self._refreshed, Evidence.FORWARD),
            tokens_key=self.name,
            release=self._release,
        )

    def _release(self) -> None:
        copies = {id(copy.buffer): copy for copy in self._copies.values()}
        self._copies = {}
        for copy in copies.values():
            self._pool.give(copy)


def _integers(of_slots: HostCopy | Sequence[int] | None) -> list[int] | None:
    if of_slots is None:
        return None
    return [int(value) for value in (of_slots.tensor().tolist() if isinstance(of_slots, HostCopy) else of_slots)]


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
        if _compact(list(sharing.values())):
            copies.update(_copy_storage(sharing, pool))
        else:
            copies.update({name: copy_tensor(tensor, pool) for name, tensor in sharing.items()})
    return copies


def _compact(views: list[Tensor]) -> bool:
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


def tokens_digest(tokens: Tensor) -> bytes:
    """32 bytes for tokens on the CPU, whatever their integer dtype."""
    return hashlib.sha256(np.ascontiguousarray(tokens.numpy().astype(np.int64, copy=False)).data).digest()


def _has_numpy(dtype: torch.dtype) -> bool:
    return bits_dtype(str(dtype).removeprefix("torch.")) is None


def _bits(tensor: Tensor) -> Array:
    bits = tensor.contiguous()
    return bits.view(_BITS.get(bits.element_size(), torch.uint8)).numpy()
