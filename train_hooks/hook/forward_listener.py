"""Listens to the forwards of a module by a pre-hook that comes last, so that it sees what the forward gets.

Pre-hooks of others may edit the arguments. If one of those was registered after ours, ours moves behind it; in that one
forward, whose hooks run already, the arguments are taken after the forward.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["ForwardListener"]

OnForward = Callable[[tuple[Any, ...], Mapping[str, Any], bool], None]


class ForwardListener:
    """Calls `on_forward(args, kwargs, training)` for each forward with gradients on, until `stop`."""

    def __init__(self, module: nn.Module, on_forward: OnForward) -> None:
        self._on_forward = on_forward
        self._num_hooks = 0
        self._must_be_last = False
        self._handle: Any = module.register_forward_pre_hook(
            _PreHook(self._before_forward), with_kwargs=True, prepend=True
        )

    def stop(self) -> None:
        """Listen no more."""
        self._handle.remove()

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not torch.is_grad_enabled():
            return
        hooks = module._forward_pre_hooks
        if len(hooks) != self._num_hooks:
            self._num_hooks = len(hooks)
            self._must_be_last = any(_may_edit(hook) for hook in hooks.values())
        if self._must_be_last and next(reversed(hooks)) != self._handle.id:
            hooks[self._handle.id] = hooks.pop(self._handle.id)
            self._listen_after_forward(module)
        else:
            self._on_forward(args, kwargs, module.training)

    def _listen_after_forward(self, module: nn.Module) -> None:
        def after_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
            handle.remove()
            self._on_forward(args, kwargs, module.training)

        handle = module.register_forward_hook(
            torch.compiler.disable(after_forward),  # type: ignore[no-untyped-call]
            with_kwargs=True,
            prepend=True,
            always_call=True,  # as a pre-hook is, whatever becomes of the forward
        )


class _PreHook:
    """The forward pre-hook. A copy of the model, or one that was saved and loaded, does not listen: it trains nothing here."""

    def __init__(self, listen: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None] | None) -> None:
        self._listen = listen

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._listen is not None:
            self._listen(module, args, kwargs)

    def __deepcopy__(self, _: dict[int, Any]) -> "_PreHook":
        return _PreHook(None)

    def __reduce__(self) -> tuple[type["_PreHook"], tuple[None]]:
        return _PreHook, (None,)


def _may_edit(hook: Any) -> bool:
    """Whether a pre-hook may change what the forward gets. Ours does not, and those of torch's wrappers only move it."""
    return not isinstance(hook, _PreHook) and not str(getattr(hook, "__module__", "")).startswith("torch.")
