"""The rules of Megatron's loop, with a loop of the test; the real ones are in tests/adapters."""

import sys
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train_hooks.export_format.errors import InputError
from train_hooks.export_format.reader import RunReader
from train_hooks.megatron_iterations import MegatronIterations
from train_hooks.replay import ReplayDataset

LENGTH, VOCAB = 8, 32


def microbatch(*samples: int) -> dict[str, Tensor]:
    """Two samples, as a loader gives them."""
    tokens = torch.tensor([[sample] * LENGTH for sample in samples])
    return {"tokens": tokens, "sample_index": torch.tensor(samples)}


def train(run: Path, steps: list[list[dict[str, Tensor]]], **options: Any) -> None:
    """A loop that saves every third iteration."""
    args = SimpleNamespace(iteration=0, curr_iteration=0, save=str(run / "saved"), save_interval=3, load=None)
    of_run = {"vocab_size": VOCAB, "sequence_length": LENGTH, "config": {}}
    iterations = MegatronIterations(run, lambda: args, tokens="tokens", mesh=None, options=of_run, **options)
    model: nn.Module = nn.Embedding(VOCAB, 1)
    iterations.attach_when_training(model, lambda _: {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for args.curr_iteration, batches in enumerate(steps):
        for batch in batches:
            given = iterations.tag(batch)
            assert "sample_index" not in given
            iterations.consume()
            model(given["tokens"]).sum().backward()
        optimizer.step()
    iterations.close()


@pytest.mark.parametrize(("reruns", "times"), [(True, 1), (False, 2)])
def test_samples_fetched_twice_in_an_iteration(tmp_path: Path, reruns: bool, times: int) -> None:
    """By Megatron-LM they are run again; by a curriculum they are trained on twice. In another iteration they always count."""
    train(tmp_path, [[microbatch(1, 2), microbatch(1, 2)], [microbatch(1, 2)]], reruns=reruns)
    parts = list(ReplayDataset(tmp_path, dp_rank=0))
    assert Counter(part.global_step for part in parts) == {1: times, 2: 1}
    assert all(part.batch["tokens"][:, 0].tolist() == [1, 2] for part in parts)


def test_the_state_for_a_resume_is_there_wherever_a_model_checkpoint_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every --save-interval iterations; or where LLM-jp's fork says, by its own rule."""
    steps = [[microbatch(step, step + 1)] for step in range(7)]
    train(tmp_path / "interval", steps)
    training = ModuleType("megatron.training.training")
    training.is_save_iteration = lambda iteration: iteration in (2, 5)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, training.__name__, training)
    train(tmp_path / "own", steps)
    for name, saved in (("interval", [3, 6]), ("own", [2, 5])):
        found = sorted((tmp_path / name / "saved" / "kiseki_export").iterdir())
        assert [path.name for path in found] == [f"iter_{step:07d}.json" for step in saved]
        assert len(RunReader(tmp_path / name).attempts()) == 1


def test_micro_batches_without_a_sample_index(tmp_path: Path) -> None:
    without = {"tokens": torch.zeros(2, LENGTH, dtype=torch.int64)}
    with pytest.raises(InputError, match=r"say their sample_index, found tokens; .*export.indexed\(dataset\)"):
        train(tmp_path, [[without]])
