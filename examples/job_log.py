"""What a training job tells: numbers of a step over all ranks, progress on rank 0, and for tests what each forward got."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch.distributed as dist
from gpt import GPT
from torch import Tensor
from torch.distributed.tensor import DTensor

CLEAR_LINE = "\r\x1b[K"


def mean_over_ranks(value: Tensor) -> float:
    """Every rank has as many tokens as the others, so the mean of the ranks is the mean of the tokens."""
    dist.all_reduce(value)
    return value.item() / dist.get_world_size()


def full(value: Tensor) -> Tensor:
    """A norm over sharded gradients is itself sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


class Progress:
    """A line every few steps on rank 0; on a terminal, a bar that is redrawn every step as well."""

    def __init__(self, steps: int, log_every: int, first_step: int) -> None:
        self._steps, self._every = steps, log_every
        self._bar = dist.get_rank() == 0 and sys.stdout.isatty()
        self._start, self._last_step = time.perf_counter(), first_step - 1

    def update(self, step: int, metrics: dict[str, int | float]) -> None:
        """Tell of a step that is over."""
        if step % self._every == 0 or step == self._steps:
            now = time.perf_counter()
            speed = metrics["num_tokens"] * (step - self._last_step) / (now - self._start)
            self._start, self._last_step = now, step
            say(
                f"{CLEAR_LINE if self._bar else ''}step {step:>5}/{self._steps}  loss {metrics['loss']:.4f}  "
                f"lr {metrics['lr']:.2e}  grad_norm {metrics['grad_norm']:.3f}  {speed:,.0f} tokens/s"
            )
        if self._bar:
            done = 40 * step // self._steps
            print(f"{CLEAR_LINE}[{'#' * done}{'.' * (40 - done)}] {step}/{self._steps}", end="", flush=True)

    def close(self) -> None:
        """Leave the terminal's line to whoever comes next."""
        if self._bar:
            print()


def say(text: str) -> None:
    """Print on rank 0."""
    if dist.get_rank() == 0:
        print(text, flush=True)


@dataclass(kw_only=True, slots=True)
class ConsumedLog:
    """What each forward really got, written by the model itself: a test's second opinion on the export.

    One JSON line a forward in DIR/rank{n}.jsonl, appended to over restarts. `last_label` [B] is the one token of a
    sequence that is no input; the other labels are the inputs moved by one.
    """

    file: TextIO
    resumed_from: int
    step: int = 0
    microbatch: int = 0

    @classmethod
    def from_environment(cls, model: GPT, resumed_from: int) -> ConsumedLog | None:
        """A log that watches the model, if KISEKI_EXAMPLE_CONSUMED_LOG names a directory."""
        if not (name := os.environ.get("KISEKI_EXAMPLE_CONSUMED_LOG")):
            return None
        Path(name).mkdir(parents=True, exist_ok=True)
        file = (Path(name) / f"rank{dist.get_rank()}.jsonl").open("a", buffering=1, encoding="utf-8")
        model.observer = (log := cls(file=file, resumed_from=resumed_from)).write
        return log

    def write(self, input_ids: Tensor, labels: Tensor) -> None:
        """One forward."""
        record = {
            "resumed_from": self.resumed_from,
            "step": self.step,
            "microbatch": self.microbatch,
            "input_ids": input_ids.tolist(),
            "last_label": labels[:, -1].tolist(),
        }
        self.file.write(json.dumps(record) + "\n")
