"""Stands in for a GPU where a trainer knows nothing else: tensors stay where they are, `torch.cuda` gives made-up answers."""

import contextlib
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class OnCpu(TorchFunctionMode):
    """Nothing is put on a GPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch calls it."""
        if function in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        if function is torch.Tensor.type and len(args) == 1:  # its name is looked at
            return function(*args).replace("torch.", "torch.cuda.")
        given = {name: _on_cpu(value) if name == "device" else value for name, value in (kwargs or {}).items()}
        given.pop("pin_memory", None)
        if function is torch.Tensor.to:
            args = (args[0], *map(_on_cpu, args[1:]))
        return function(*args, **given)


def _on_cpu(device: Any) -> Any:
    is_gpu = isinstance(device, str | torch.device) and "cuda" in str(device)
    return "cpu" if is_gpu or type(device) is int else device


class Nothing:
    """A stream or an event, which took a millisecond."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As one is made."""

    def elapsed_time(self, _: Any) -> float:
        """As of an event."""
        return 1.0

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: 0


def without_gpu() -> None:
    """Put them in place, for as long as the process lives."""
    card = SimpleNamespace(major=9, minor=0, multi_processor_count=1, total_memory=1 << 30, name="none")
    answers: dict[str, Any] = {
        "is_available": True, "device_count": 2, "current_device": "cpu", "set_device": None, "synchronize": None,
        "get_device_properties": card, "get_device_capability": (9, 0), "empty_cache": None, "memory_stats": {},
        "memory_allocated": 0, "max_memory_allocated": 0, "memory_reserved": 0, "max_memory_reserved": 0,
        "current_stream": Nothing(), "default_stream": Nothing(), "is_current_stream_capturing": False,
        "stream": contextlib.nullcontext(), "manual_seed": None, "manual_seed_all": None,
        "reset_peak_memory_stats": None,
    }  # fmt: skip
    cuda: Any = torch.cuda
    for name, answer in answers.items():
        setattr(cuda, name, lambda *_, answer=answer, **__: answer)
    cuda.Stream = cuda.Event = Nothing
    cuda.get_rng_state = lambda *_: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    module: Any = nn.Module
    module.cuda = lambda self, *_: self
    OnCpu().__enter__()  # type: ignore[no-untyped-call]
