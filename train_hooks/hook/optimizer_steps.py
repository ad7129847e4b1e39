"""Whether an optimizer of the model made a step: after an overflow of mixed precision it does not, and nobody says so."""

import gc
import warnings
import weakref
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = ["OptimizerSteps"]


class OptimizerSteps:
    """Watches the steps of optimizers that have parameters of `model`. Those are looked for at the first `skipped_step`.

    A fused optimizer on a device that skips its step inside its kernel counts as one that made it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._belongs: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()
        self._known: bool | None = None
        self._stepped = self._warned = False
        self._handle: Any = register_optimizer_step_post_hook(self._after_step)

    def skipped_step(self) -> bool:
        """Whether no optimizer made a step since the last call, though one of the model's is known."""
        stepped, self._stepped = self._stepped, False
        if self._known is None:
            self._known = stepped or self._exists()
        return self._known and not stepped

    def warn_of_skipped_step(self, global_step: int, stacklevel: int) -> None:
        """Say, the first time, that a step is recorded as skipped."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"step {global_step} is recorded as skipped_update: the optimizer made no step since the commit before. "
                "Call commit after optimizer.step(), or say commit(…, status=…). This is said once",
                stacklevel=stacklevel,
            )

    def stop(self) -> None:
        """Watch no more."""
        self._handle.remove()

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:  # noqa: ARG002
        if self._stepped:
            return
        of_model = self._belongs.get(optimizer)
        if of_model is None:
            of_model = self._belongs[optimizer] = self._has_parameters_of_model(optimizer)
        if of_model:
            self._known = True
            found_inf = getattr(optimizer, "found_inf", None)  # a fused one skips by itself what a GradScaler says
            self._stepped = found_inf is None or not found_inf.is_cpu or not bool(found_inf)

    def _has_parameters_of_model(self, optimizer: Any) -> bool:
        model = self._model()
        parameters = set() if model is None else {id(parameter) for parameter in model.parameters()}
        return any(id(parameter) in parameters for group in optimizer.param_groups for parameter in group["params"])

    def _exists(self) -> bool:
        """Whether an optimizer of the model exists that tells of its steps: before its first step nobody knows it."""
        for found in gc.get_objects():
            if (
                issubclass(type(found), Optimizer)
                and getattr(type(found).step, "hooked", False)
                and self._has_parameters_of_model(found)
            ):
                return True
        return False
