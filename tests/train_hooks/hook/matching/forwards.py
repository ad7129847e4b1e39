"""A model that takes any tensors, and what several tests say of forwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.train_hooks.hook.toy import attach, exported, exported_ids, microbatch
from train_hooks.export_format.errors import Mismatch

Feed = Callable[[nn.Module, list[dict[str, Any]]], Any]


class Ids(nn.Module):
    """Takes any number of tensors, and keeps the first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        self.seen.append((args or tuple(kwargs.values()))[0].clone())
        return self.weight.sum()


def refused(run_dir: Path, feed: Feed, match: str, *, num: int = 1, **options: Any) -> None:
    """The step of this forward is refused, in these words, and not acknowledged."""
    model = Ids()
    hook = attach(model, run_dir, **options)
    feed(model, list(hook.wrap(microbatch(seed, slots=4) for seed in range(num))))
    with pytest.raises(Mismatch, match=match):
        hook.commit(1)
    with pytest.raises(Mismatch):
        hook.commit(1)
    hook.close()
    assert exported_ids(run_dir) == []


ids = "input_ids"


def step_statuses(run_dir: Path) -> list[str]:
    return [str(part.status.value) for part in exported(run_dir).values()]
