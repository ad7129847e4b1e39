"""What a model's forward really got, written down by a pre-hook on the model itself: the second opinion on an export.

One JSON line a forward in DIR/rank{n}.jsonl, appended to over restarts; it knows nothing of kiseki. `life` is the process
(0 for the first start, 1 for the restart), `step` what the trainer's own counter says.
"""

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

TENSORS = ("input_ids", "labels", "attention_mask", "position_ids", "label_ids", "label_mask")


class ConsumedLog:
    """Watches a model. `step`: the 0-based number of steps that are over. At `kill_at` it kills its own process.

    weights: whether a hash of the weights is written down too, by which it shows whether a step changed them.
    """

    def __init__(
        self, model: nn.Module, directory: Path, rank: int, step: Callable[[], int], *, kill_at: tuple[int, int] | None,
        weights: bool = False,
    ) -> None:  # fmt: skip
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"rank{rank}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.life = 1 + json.loads(lines[-1])["life"] if lines else 0
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._step, self._kill_at, self._weights = step, kill_at, weights
        self._last_step, self._num_forwards = -1, 0
        model.register_forward_pre_hook(self._write, with_kwargs=True)

    def _write(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (module.training and torch.is_grad_enabled()):
            return
        step = self._step() + 1
        self._num_forwards = self._num_forwards + 1 if step == self._last_step else 0
        self._last_step = step
        tensors = {name: kwargs[name].tolist() for name in TENSORS if isinstance(kwargs.get(name), Tensor)}
        if args and isinstance(args[0], Tensor):
            tensors["input_ids"] = args[0].tolist()
        line = {"life": self.life, "step": step, "microbatch": self._num_forwards, "tensors": tensors}
        if self._weights:
            line["weights"] = _hash(module)
        self._file.write(json.dumps(line) + "\n")
        if self.life == 0 and (step, self._num_forwards) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _hash(model: nn.Module) -> str:
    """Of all parameters."""
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().to(torch.float32, copy=True).numpy().tobytes())
    return digest.hexdigest()
