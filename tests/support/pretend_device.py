"""A device that is pretended: tensors in CPU memory that claim to be elsewhere, and copies from there that are late.

    with pretend_device() as device:
        fed = device.moved(batch)      # copies; `is_cpu` is False of them, and of all that torch makes of them
        device.hold()                  # no copy to the host ends any more
        …
        device.release()

It is stricter than a device, so that what goes wrong there sometimes goes wrong here always:

- What would wait for a device raises `Waits`: reading a value (`item`, `numpy`, `bool`), a copy that is not asynchronous, and
  `Event.synchronize` on the thread that entered the context, which stands for the training.
- The address of a tensor is one that nobody can read.
- Pinned memory holds noise until an event behind the copy into it was waited for. It holds noise for ever where the copy's
  stream did not wait for the training's stream before, or the copied tensor was not kept by `record_stream`.

`train_hooks` is not changed: the context stands in for `torch.get_device_module`, and for torch's functions on this thread
and on the writer thread.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from train_hooks.hook.export.exporter import Exporter
from train_hooks.hook.tensors import host_copies

__all__ = ["PretendDevice", "Waits", "is_on_device", "pretend_device"]

NOISE = 85
_FAR = 1 << 62
_READS = frozenset(
    ("__array__", "__bool__", "__contains__", "__float__", "__index__", "__int__", "allclose", "cpu", "equal", "item",
     "nonzero", "numpy", "tolist", "unique")
)  # fmt: skip


class Waits(AssertionError):
    """On a real device this would have waited for it."""


@dataclass(slots=True)
class _Copy:
    """From the device into pinned memory, on its way. in_order: whether its stream waited for what made the source."""

    source: Tensor
    target: Tensor
    in_order: bool
    begun: float


class _Stream:
    """One beside the training's: copies on it, in their order, of which `num_done` are done."""

    def __init__(self, device: "PretendDevice") -> None:
        self._device = device
        self.copies: list[_Copy] = []
        self.num_done = 0
        self.has_seen = -1

    def wait_stream(self, other: object) -> None:
        """What is begun on the training's stream until now comes first."""
        assert other is self._device.training_stream
        self.has_seen = self._device.num_operations


class _Event:
    """Behind the copies that a stream had when it was recorded."""

    def __init__(self, device: "PretendDevice") -> None:
        self._device = device
        self._stream: _Stream | None = None
        self._num_copies = 0

    def record(self, stream: _Stream) -> None:
        """Behind what the stream has to do."""
        self._stream, self._num_copies = stream, len(stream.copies)

    def synchronize(self) -> None:
        """Wait for the copies, and make them."""
        assert self._stream is not None
        self._device.finish(self._stream, self._num_copies)


class PretendDevice:
    """Moves tensors, and says when copies from it end. Stands in for `torch.cuda` as the device's module."""

    def __init__(self, delay_s: float) -> None:
        self.training_stream = object()
        self.num_operations = 0
        self.num_finished = self.num_pinned = 0
        self._delay_s = delay_s
        self._training = threading.current_thread()
        self._stream: _Stream | None = None
        self._allowed: float = float("inf")
        self._changed = threading.Condition()

    def moved(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The same micro-batch with copies on the device in place of its tensors."""
        return {name: self.move(item) if isinstance(item, Tensor) else item for name, item in batch.items()}

    def move(self, tensor: Tensor) -> Tensor:
        """A copy on the device."""
        return self.mark(tensor.detach().clone())

    def read(self, tensor: Tensor) -> Tensor:
        """A copy in CPU memory, made by whoever may wait: the test."""
        with torch._C.DisableTorchFunction():
            return tensor.detach().clone()

    def hold(self, after: int = 0) -> None:
        """No copy ends any more, but for the next `after`."""
        with self._changed:
            self._allowed = self.num_finished + after

    def release(self) -> None:
        """Copies may end."""
        with self._changed:
            self._allowed = float("inf")
            self._changed.notify_all()

    def mark(self, tensor: Tensor) -> Tensor:
        """It is on the device from now on, where the training's stream made it."""
        tensor._made_on_device = self.num_operations = self.num_operations + 1  # type: ignore[attr-defined]
        return tensor

    def begin_copy(self, target: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
        """Of a tensor on the device into one that is not."""
        if not (non_blocking and getattr(target, "_is_pinned", False)):
            raise Waits("a copy from a device waits for it unless it is asynchronous, and into pinned memory")
        if self._stream is None:
            raise Waits("a copy on the training's stream makes what the training does next wait")
        in_order = source._made_on_device <= self._stream.has_seen  # type: ignore[attr-defined]
        target.fill_(NOISE)
        self._stream.copies.append(_Copy(source, target, in_order, time.monotonic()))
        return target

    def finish(self, stream: _Stream, num_copies: int) -> None:
        """Wait for the first copies of a stream."""
        if threading.current_thread() is self._training:
            raise Waits("the training's thread waits for an event of the device")
        with self._changed:
            while stream.num_done < num_copies:
                self._changed.wait_for(lambda: self.num_finished < self._allowed)
                copy = stream.copies[stream.num_done]
                time.sleep(max(0.0, copy.begun + self._delay_s - time.monotonic()))
                if copy.in_order and getattr(copy.source, "_kept_by", None) is stream:
                    with torch._C.DisableTorchFunction():
                        copy.target.copy_(copy.source)
                stream.num_done += 1
                self.num_finished += 1

    def Stream(self, device: torch.device) -> _Stream:  # noqa: N802, ARG002  torch's names
        """One beside the training's."""
        return _Stream(self)

    def Event(self) -> _Event:  # noqa: N802
        """Not recorded yet."""
        return _Event(self)

    def current_stream(self, device: torch.device) -> object:  # noqa: ARG002
        """The training's, as seen from outside of `stream`."""
        return self.training_stream if self._stream is None else self._stream

    @contextlib.contextmanager
    def stream(self, stream: _Stream) -> Iterator[None]:
        """Copies are made on it in here."""
        self._stream = stream
        try:
            yield
        finally:
            self._stream = None


def is_on_device(value: object) -> bool:
    """Whether it is a tensor that was moved, or made of one that was."""
    return hasattr(value, "_made_on_device")


class _Functions(TorchFunctionMode):
    """Every function of torch, and every attribute of a tensor, as far as it concerns tensors on the device."""

    def __init__(self, device: PretendDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        if name == "empty" and kwargs.pop("pin_memory", False):
            pinned = func(*args, **kwargs)
            pinned._is_pinned = True
            self._device.num_pinned += 1
            return pinned
        if name == "backward":
            return self._backward(args[0])
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not any(map(is_on_device, given)):
            return func(*args, **kwargs)
        if name == "is_cpu":
            return not is_on_device(args[0])
        if name in _READS:
            raise Waits(f"{name} of a tensor on a device")
        if name == "data_ptr":
            return func(*args, **kwargs) + _FAR
        if name == "copy_" and not is_on_device(args[0]):
            return self._device.begin_copy(args[0], args[1], kwargs.get("non_blocking", False))
        found = func(*args, **kwargs)
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor) and (is_on_device(leaf) or not any(leaf is each for each in given)):
                self._device.mark(leaf)
        return found

    def _backward(self, loss: Tensor) -> None:
        """With this mode, which torch leaves to call a function: hooks run in there, and forwards that are done again."""
        one = torch.ones_like(loss)
        with self:
            _engine_run_backward((loss,), (one,), False, False, (), allow_unreachable=True, accumulate_grad=True)


@contextlib.contextmanager
def pretend_device(*, delay_s: float = 0.0) -> Iterator[PretendDevice]:
    """A device for this thread, the training's, and for writer threads that are begun in here.

    delay_s: how long each copy to the host takes at least.
    """
    device = PretendDevice(delay_s)
    work = Exporter._run_writer

    def work_on_device(exporter: Exporter) -> None:
        with _Functions(device):
            work(exporter)

    with pytest.MonkeyPatch.context() as patch, _Functions(device):
        patch.setattr(torch, "get_device_module", lambda _: device)
        patch.setattr(Tensor, "record_stream", lambda tensor, stream: setattr(tensor, "_kept_by", stream))
        patch.setattr(host_copies, "_side_streams", {})
        patch.setattr(Exporter, "_run_writer", work_on_device)
        try:
            yield device
        finally:
            device.release()
