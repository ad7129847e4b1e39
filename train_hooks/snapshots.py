"""The hook's own copy of a micro-batch, taken as it is fetched: loaders reuse buffers, trainers edit batches in place.

It also remembers which tensors it was taken from, so that a forward's tensors can be recognised without comparing them.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from train_hooks.batches import NamedTensors
from train_hooks.export_format.records import Segment
from train_hooks.exporter import StagedMicrobatch
from train_hooks.host_copies import BufferPool, HostCopy, copy_tensor

__all__ = ["Snapshot", "tokens_digest"]

Array = npt.NDArray[np.generic]
_SAMPLES = 2
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _identity(tensor: Tensor) -> tuple[int, int]:
    """Which tensor this is and how often it was changed. Holds for as long as somebody keeps the tensor."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


class Snapshot:
    """One fetched micro-batch: the trainer's tensors, to know them again, and our copies of them.

    Implements `LateMicrobatch`: the arrays are made on the writer thread.
    """

    def __init__(self, batch: NamedTensors, pool: BufferPool) -> None:
        tokens = batch.tensors[batch.tokens]
        self.number = 0
        self.name = batch.tokens
        self._shape = tokens.shape
        self.num_slots, self.sequence_length = self._shape
        self.sources: Mapping[str, Tensor] = batch.tensors
        self._identities = {name: _identity(tensor) for name, tensor in batch.tensors.items()}
        self._pool = pool
        self._segments: tuple[tuple[Segment, ...], ...] = ()
        if batch.segments is not None:
            self._segments = tuple(tuple(of_slot) for of_slot in batch.segments)
        self._copies = _copy_all(batch.tensors, pool)
        self._array: Array | None = None
        self._samples, self._sampled = _sampled(tokens)
        index = batch.sample_index
        self._sample_index = copy_tensor(index, pool) if isinstance(index, Tensor) else index
        self.size_bytes = 256 * self.num_slots
        for copy in self._copies.values():
            self.size_bytes += copy.buffer.nbytes

    @property
    def on_cpu(self) -> bool:
        """Whether the tokens can be looked at without waiting for a device."""
        return self._copies[self.name].wait is None

    def could_be(self, fed: Tensor) -> bool:
        """Whether `fed` has the shape of the tokens, of them flattened, or of all but the last of each sequence."""
        if fed.numel() == self.num_slots * self.sequence_length:
            return True
        return fed.shape == (self.num_slots, self.sequence_length - 1)

    def same_tensor(self, fed: Tensor, *, changed: bool = False) -> bool:
        """Whether `fed` is the very tensor that was fetched, unchanged as far as torch knows (or `changed` since)."""
        pointer, version = self._identities[self.name]
        if fed.data_ptr() != pointer:
            return False
        source = self.sources[self.name]
        if fed.dtype != source.dtype or fed.device != source.device:
            return False
        return changed or fed.is_inference() or fed._version == version

    def is_untouched(self, fed: object) -> bool:
        """Fast and sure only if True: `fed` is the very tensor, and nothing of the micro-batch was changed since."""
        samples = self._samples
        source = self.sources.get(self.name)
        if samples is None or source is None or fed is not source:
            return False
        identities = self._identities
        if source.data_ptr() != identities[self.name][0] or source.shape != self._shape:
            return False  # given other memory by `set_` or `data`
        for name, other in self.sources.items():
            if other.is_inference() or other._version != identities[name][1]:
                return False
        return samples.tobytes() == self._sampled

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
            self._array = self._copies[self.name].tensor().numpy()
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
            if any(tensor.data_ptr() == pointer for tensor in given):
                self.copy_again(name)

    def copy_again(self, name: str) -> None:
        """Replace our copy of a tensor by one of what the trainer's tensor holds now."""
        source = self.sources[name]
        if source.is_cpu:
            self._copies[name].tensor().copy_(source.detach())
        else:
            self._copies[name] = copy_tensor(source, self._pool)
        self._identities[name] = _identity(source)

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
        self._samples = None

    def resolve(self) -> StagedMicrobatch:
        """The micro-batch as arrays. Called once, on the writer thread."""
        tensors: dict[str, Array] = {}
        batch_tensors: dict[str, Array] = {}
        for name, copy in self._copies.items():
            if name != self.name:
                tensor = copy.tensor()
                key = name if _has_numpy(tensor.dtype) else f"{name}:{str(tensor.dtype).removeprefix('torch.')}"
                per_slot = tensor.ndim >= 1 and tensor.shape[0] == self.num_slots
                (tensors if per_slot else batch_tensors)[key] = _bits(tensor) if key != name else tensor.numpy()
        return StagedMicrobatch(
            tokens=self._copies[self.name].tensor().numpy(),
            tensors=tensors,
            batch_tensors=batch_tensors,
            segments=self._segments,
            sample_index=self._sample_indices(),
            tokens_key=self.name,
            release=self._release,
        )

    def _sample_indices(self) -> list[int] | None:
        index = self._sample_index
        if index is None:
            return None
        if isinstance(index, HostCopy):
            return [int(value) for value in index.tensor().tolist()]
        return [int(value) for value in index]

    def _release(self) -> None:
        copies = {id(copy.buffer): copy for copy in self._copies.values()}
        self._copies = {}
        for copy in copies.values():
            self._pool.give(copy.buffer, pinned=copy.pinned)


def _sampled(tokens: Tensor) -> tuple[Array | None, bytes]:
    """A few tokens of each sequence in the trainer's memory, and what they are now. None for what is not plain memory."""
    if type(tokens) is not Tensor or not tokens.is_cpu or tokens.layout is not torch.strided:
        return None, b""
    samples = tokens.numpy()[:, :: tokens.shape[1] // _SAMPLES or 1]
    return samples, samples.tobytes()


def _copy_all(tensors: Mapping[str, Tensor], pool: BufferPool) -> dict[str, HostCopy]:
    copies: dict[str, HostCopy] = {}
    views: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided:
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
    copy = copy_tensor(first.detach().as_strided((numel,), (1,), 0), pool)
    return {
        name: HostCopy(copy.buffer, view=(tuple(view.shape), view.stride(), int(view.storage_offset())))
        for name, view in views.items()
    }


def tokens_digest(tokens: Tensor) -> bytes:
    """32 bytes for tokens on the CPU, whatever their integer dtype."""
    return hashlib.sha256(np.ascontiguousarray(tokens.numpy().astype(np.int64, copy=False)).data).digest()


def _has_numpy(dtype: torch.dtype) -> bool:
    return dtype not in (torch.bfloat16, torch.complex32) and not str(dtype).startswith("torch.float8")


def _bits(tensor: Tensor) -> Array:
    bits = tensor.contiguous()
    return bits.view(_BITS.get(bits.element_size(), torch.uint8)).numpy()
