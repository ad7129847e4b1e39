"""Copies of tensors in CPU memory that nobody else writes to, made without waiting for anything.

- On the CPU a copy goes into a buffer of a pool, to which the writer thread gives it back; fresh memory would cost more
  than the copy. int64 is narrowed to int32 on the way, where no value is lost: what costs is the memory written to.
- A tensor on a device is cloned there, in the order of the training stream, and the clone is sent to pinned memory on a
  stream of its own. Nobody waits but the writer thread, for the event behind the copy. (Reviewed against the
  documentation of `torch.cuda.Stream` and of the caching allocator, not run on a GPU.)
"""

import functools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from train_hooks.hook.tensors.kernels import Kernels, kernels

__all__ = ["BufferPool", "HostCopy", "copy_narrowed", "copy_tensor"]

_MAX_POOL_BYTES = 32 << 20  # of a kind
_FEW_KINDS, _MANY_KINDS_SHARE = 8, 2.0  # more kinds than that have twice as much in all
K = TypeVar("K")
V = TypeVar("V")


@dataclass(slots=True)
class HostCopy:
    """A copy in CPU memory, complete once `wait` has returned. `view`: (size, stride, offset) in `buffer`, or all of it.

    narrowed: the tensor is int64, and `buffer` holds its values as int32; then address and numel are the buffer's.
    """

    buffer: Tensor
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None = None
    wait: Callable[[], None] | None = None
    pinned: bool = False
    narrowed: bool = False
    address: int = 0
    numel: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """That of the tensor."""
        return torch.int64 if self.narrowed else self.buffer.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the tensor."""
        return tuple(self.buffer.shape) if self.view is None else self.view[0]

    @property
    def in_flight(self) -> bool:
        """Whether a device may still write to it."""
        return self.wait is not None

    def tensor(self) -> Tensor:
        """The copied tensor; waits for a device's copy."""
        values = self.values()
        return values.to(torch.int64) if self.narrowed else values

    def values(self) -> Tensor:
        """The copied tensor, in int32 where it is narrowed; waits for a device's copy."""
        if self.wait is not None:
            self.wait()
            self.wait = None
        return self.buffer if self.view is None else self.buffer.as_strided(*self.view)


class BufferPool:
    """Tensors to copy into, newest first, since those are still in the processor's cache. Any thread may take and give."""

    def __init__(self) -> None:
        self._free: dict[tuple[torch.dtype, torch.Size, bool], deque[Tensor]] = {}
        self._narrowed: dict[torch.Size, deque[HostCopy]] = {}

    @functools.cached_property
    def kernels(self) -> Kernels:
        """The compiled passes, where the training thread finds them fast."""
        return kernels()

    def take(self, dtype: torch.dtype, shape: torch.Size, *, pinned: bool = False) -> Tensor:
        """A tensor of any content."""
        free = self._free.get((dtype, shape, pinned))
        if free:
            try:
                return free.pop()
            except IndexError:  # another thread was faster
                pass
        return torch.empty(shape, dtype=dtype, device="cpu", pin_memory=pinned)

    def take_narrowed(self, shape: torch.Size) -> HostCopy:
        """A copy of int64 values, to be filled."""
        free = self._narrowed.get(shape)
        if free:
            try:
                return free.pop()
            except IndexError:
                pass
        buffer = torch.empty(shape, dtype=torch.int32, device="cpu")
        return HostCopy(buffer, narrowed=True, address=buffer.data_ptr(), numel=buffer.numel())

    def give(self, copy: HostCopy) -> None:
        """Hand back the memory of a copy; beyond 32 MiB of a kind the oldest is left to the allocator.

        Where there are many kinds, as of sequences of many lengths, so are those that were not given back for longest.
        """
        buffer = copy.buffer
        if copy.narrowed:
            copy.view = None
            _put_back(self._narrowed, buffer.shape, copy, buffer.nbytes)
        else:
            _put_back(self._free, (buffer.dtype, buffer.shape, copy.pinned), buffer, buffer.nbytes)


def _put_back(free: dict[K, deque[V]], key: K, item: V, nbytes: int) -> None:
    found = free.get(key)
    if found is None:
        found = free.setdefault(key, deque(maxlen=_MAX_POOL_BYTES // max(1, nbytes)))
    found.append(item)
    if len(free) > _FEW_KINDS:
        free.pop(key, None)
        free[key] = found  # the last, now
        while len(free) > 1 and sum(len(kept) / (kept.maxlen or 1) for kept in list(free.values())) > _MANY_KINDS_SHARE:
            free.pop(next(iter(free)), None)


def copy_narrowed(source: Tensor, pool: BufferPool) -> HostCopy | None:
    """A copy in half the bytes; None where `source` is not int64 in plain CPU memory, or holds a value that int32 does not."""
    if not (source.dtype is torch.int64 and type(source) is Tensor and source.is_cpu and source.is_contiguous()):
        return None
    copy = pool.take_narrowed(source.shape)
    if pool.kernels.narrow(source.data_ptr(), copy.address, copy.numel):
        pool.give(copy)
        return None
    return copy


def copy_tensor(source: Tensor, pool: BufferPool) -> HostCopy:
    """A copy of `source` that nobody else writes to. Never waits for a device."""
    shape = source.shape
    if source.is_cpu:
        buffer = pool.take(source.dtype, shape)
        buffer.copy_(source.detach() if source.requires_grad else source)
        return HostCopy(buffer)
    device = torch.get_device_module(source.device)
    clone = source.detach().clone()  # on the training stream: what comes later cannot change it
    stream = _side_stream(device, source.device)
    stream.wait_stream(device.current_stream(source.device))
    buffer = pool.take(source.dtype, shape, pinned=True)
    with device.stream(stream):
        buffer.copy_(clone, non_blocking=True)
        event = device.Event()
        event.record(stream)
    clone.record_stream(stream)
    return HostCopy(buffer, wait=event.synchronize, pinned=True)


_side_streams: dict[torch.device, Any] = {}


def _side_stream(module: Any, device: torch.device) -> Any:
    if device not in _side_streams:
        _side_streams[device] = module.Stream(device=device)
    return _side_streams[device]
