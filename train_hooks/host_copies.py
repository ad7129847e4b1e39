"""Copies of tensors in CPU memory that nobody else writes to, made without waiting for anything.

- On the CPU a copy goes into a buffer of a pool, to which the writer thread gives it back; fresh memory would cost more
  than the copy.
- A tensor on a device is cloned there, in the order of the training stream, and the clone is sent to pinned memory on a
  stream of its own. Nobody waits but the writer thread, for the event behind the copy. (Reviewed against the
  documentation of `torch.cuda.Stream` and of the caching allocator, not run on a GPU.)
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["BufferPool", "HostCopy", "copy_tensor"]

_MAX_POOL_BYTES = 32 << 20


class BufferPool:
    """Tensors to copy into, newest first, since those are still in the processor's cache. Any thread may take and give."""

    def __init__(self) -> None:
        self._free: dict[tuple[torch.dtype, torch.Size, bool], deque[Tensor]] = {}

    def take(self, dtype: torch.dtype, shape: torch.Size, *, pinned: bool = False) -> Tensor:
        """A tensor of any content."""
        free = self._free.get((dtype, shape, pinned))
        if free:
            try:
                return free.pop()
            except IndexError:  # another thread was faster
                pass
        return torch.empty(shape, dtype=dtype, pin_memory=pinned)

    def give(self, buffer: Tensor, *, pinned: bool = False) -> None:
        """Hand back what `take` gave; beyond 32 MiB of a kind the oldest is left to the allocator."""
        key = (buffer.dtype, buffer.shape, pinned)
        free = self._free.get(key)
        if free is None:
            free = self._free.setdefault(key, deque(maxlen=_MAX_POOL_BYTES // max(1, buffer.nbytes)))
        free.append(buffer)


@dataclass(slots=True)
class HostCopy:
    """A copy in CPU memory, complete once `wait` has returned. `view`: (size, stride, offset) in `buffer`, or all of it."""

    buffer: Tensor
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None = None
    wait: Callable[[], None] | None = None
    pinned: bool = False

    def tensor(self) -> Tensor:
        """The copied tensor; waits for a device's copy."""
        if self.wait is not None:
            self.wait()
            self.wait = None
        return self.buffer if self.view is None else self.buffer.as_strided(*self.view)


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
