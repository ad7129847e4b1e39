"""Stands in for what Megatron-Bridge imports whether or not it is used.

Transformer Engine, nvidia-resiliency-ext and energon; and `typing.override`, which Python has from 3.12 on.
"""

import sys
import typing
from types import ModuleType
from typing import Any

import torch
import typing_extensions


class Names(type):
    """Classes in classes, of any name."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Names(name, (), {})


class Unused(ModuleType):
    """Has every name, of which none is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(Names("Unused", (), {}), name)


def without_packages() -> None:
    """Put them in place, once megatron.core has seen that they are not there."""
    import megatron.core.datasets.utils as datasets
    import megatron.core.extensions.transformer_engine  # noqa: F401
    import megatron.core.tensor_parallel.random as random

    datasets.compile_helpers = lambda: None  # the package has them compiled
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    package: Any = ModuleType("nvidia_resiliency_ext")
    package.__path__ = []  # no other module is found
    sys.modules.update({package.__name__: package, "nvidia_resiliency_ext.inprocess": Unused("inprocess")})
    for name in ("megatron.energon", "transformer_engine", "transformer_engine.pytorch"):
        module: Any = Unused(name)
        module.__path__, module.__version__ = [], "0.0.0"
        sys.modules[name] = module
    package = sys.modules["transformer_engine"]
    package.pytorch = module
    typing.override = typing_extensions.override  # type: ignore[attr-defined]  # Python 3.12 has it
