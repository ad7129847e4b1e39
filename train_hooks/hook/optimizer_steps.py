"""Whether an optimizer of the model made a step: after an overflow of mixed precision it does not, and nobody says so."""

import gc
import weakref
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = ["OptimizerSteps"]


class OptimizerSteps:
    """Counts the steps of optimizers that have parameters of `model`. Those are looked for at the first question.

    A fused optimizer on a device that skips its step inside its kernel counts as one that made it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._of_model: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._known: bool | None = None
        self._stepped = False
        self._handle: Any = register_optimizer_step_post_hook(self._after_step)

    def left_out(self) -> bool:
        """Whether no optimizer made a step since the last question, though one is known that could have."""
        stepped, self._stepped = self._stepped, False
        if self._known is None:
            self._known = stepped or self._is_there()
        return self._known and not stepped

    def stop(self) -> None:
        """Count no more."""
        self._handle.remove()

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        if self._stepped:
            return
        of_model = self._of_model.get(optimizer)
        if of_model is None:
            of_model = self._of_model[optimizer] = self._is_of_model(optimizer)
        if of_model:
            self._known = True
            found_inf = getattr(optimizer, "found_inf", None)  # a fused one skips by itself what a GradScaler says
            self._stepped = found_inf is None or not found_inf.is_cpu or not bool(found_inf)

    def _is_of_model(self, optimizer: Any) -> bool:
        model = self._model()
        parameters = set() if model is None else {id(parameter) for parameter in model.parameters()}
        return any(id(parameter) in parameters for group in optimizer.param_groups for parameter in group["params"])

    def _is_there(self) -> bool:
        """Whether an optimizer of the model exists that tells of its steps: before its first step nobody knows it."""
        for found in gc.get_objects():
            if (
                issubclass(type(found), Optimizer)
                and getattr(type(found).step, "hooked", False)
                and self._is_of_model(found)
            ):
                return True
        return False
