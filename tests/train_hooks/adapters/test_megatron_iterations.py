"""The rules of Megatron's loop, with a loop of the test; the real ones are in tests/adapters."""

import contextlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from train_hooks.adapters.megatron_iterations import MegatronIterations, context_parallel_columns
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import StepStatus
from train_hooks.export_format.upkeep.status import status
from train_hooks.replay import ReplayDataset

LENGTH, VOCAB = 8, 32


def microbatch(*samples: int) -> dict[str, Tensor]:
    """Two samples, as a loader gives them."""
    tokens = torch.tensor([[sample + token for token in range(LENGTH)] for sample in samples])
    return {"tokens": tokens, "sample_index": torch.tensor(samples)}


def train(
    run: Path,
    steps: list[list[dict[str, Tensor]]],
    *,
    saves: Collection[int] = (),
    exits: Collection[int] = (),
    overflows: Collection[int] = (),
    saves_in: str = "test_trainer",
    fed: Callable[[Tensor], Tensor] = lambda tokens: tokens,
    part: Callable[[nn.Module], nn.Module] | None = None,
    **options: Any,
) -> dict[int, dict[int, StepStatus]]:
    """A loop that saves after the steps `saves`, and, of the steps before, in the middle of the steps `exits`.

    fed: what the model is given of the tokens of a micro-batch. part: which part of the model is listened to.

    What the export held at each save, by the iteration that was saved: the status of each step.
    """
    found = {}

    def save_checkpoint(iteration: int) -> None:
        found[iteration] = RunReader(run).attempt(1).step_status()

    trainer, elsewhere = ModuleType("test_trainer"), ModuleType("test_elsewhere")
    for module in (trainer, elsewhere):
        module.save_checkpoint = save_checkpoint  # type: ignore[attr-defined]
    args = SimpleNamespace(iteration=0, curr_iteration=0, save=str(run / "saved"), load=None)
    of_run = {"vocab_size": VOCAB, "sequence_length": LENGTH, "config": {}}
    iterations = MegatronIterations(
        run, lambda: args, tokens="tokens", mesh=None, options=of_run, saves=saves_in, **options
    )
    model = nn.Sequential(nn.Embedding(VOCAB, 1), nn.Linear(1, 1))
    iterations.listens_to = None if part is None else part(model)
    iterations.attach_when_training(model, lambda _: {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        mock.patch.dict(sys.modules, {module.__name__: module for module in (trainer, elsewhere)}),
        contextlib.closing(iterations),
    ):
        model.train()
        for args.curr_iteration, batches in enumerate(steps):
            step = args.curr_iteration + 1
            for batch in batches:
                shown = iterations.tag(batch)
                assert "sample_index" not in shown
                iterations.consume()
                model(fed(shown["tokens"])).sum().backward()
            if step in exits:
                trainer.save_checkpoint(step - 1)
            if step not in overflows:
                optimizer.step()
            if step in saves:
                elsewhere.save_checkpoint(iteration=step)
    return found


def test_what_context_parallel_rank_0_is_given() -> None:
    assert context_parallel_columns(16, 1) is None
    assert context_parallel_columns(16, 2) == [0, 1, 2, 3, 12, 13, 14, 15]
    assert context_parallel_columns(16, 4) == [0, 1, 14, 15]


PARTS = {"columns": lambda length: context_parallel_columns(length, 2)}


@pytest.mark.parametrize(
    ("fed", "options", "expected"),
    [
        (lambda tokens: tokens, {}, "evidence: forward 100%; matched: whole 100%"),
        (lambda tokens: tokens.int().flatten(), {}, "evidence: forward 100%; matched: whole 100%"),
        (lambda tokens: tokens[:, :-1], {}, "evidence: forward 100%; matched: slice 100%"),
        (lambda tokens: tokens[:, [0, 1, 6, 7]], PARTS, "evidence: forward 100%; matched: slice 100%"),
        (lambda tokens: tokens[:, :4], PARTS, "evidence: loader 100%; matched: count 100%"),
        (lambda tokens: tokens + 1, {}, "evidence: loader 100%; matched: count 100%"),
        (lambda tokens: tokens, {"part": lambda model: model[0]}, "evidence: forward 100%; matched: whole 100%"),
        (lambda tokens: tokens, {"part": lambda model: model[1]}, "evidence: loader 100%; matched: count 100%"),
    ],
)
def test_how_rows_are_known(
    tmp_path: Path, fed: Callable[[Tensor], Tensor], options: dict[str, Any], expected: str
) -> None:
    """By what a forward got; where that is something else, the step is no error, and its rows are counted."""
    train(tmp_path, [[microbatch(1, 2), microbatch(3, 4)], [microbatch(5, 6)]], fed=fed, **options)
    assert status(RunReader(tmp_path)).shares.sentence() == expected
    assert [row[0] for part in ReplayDataset(tmp_path, dp_rank=0) for row in part.batch["tokens"].tolist()] == [
        1, 2, 3, 4, 5, 6
    ]  # fmt: skip


@pytest.mark.parametrize(("reruns", "times"), [(True, 1), (False, 2)])
def test_samples_fetched_twice_in_an_iteration(tmp_path: Path, reruns: bool, times: int) -> None:
    """By Megatron-LM they are run again; by a curriculum they are trained on twice. In another iteration they always count."""
    train(tmp_path, [[microbatch(1, 2), microbatch(1, 2)], [microbatch(1, 2)]], reruns=reruns)
    parts = list(ReplayDataset(tmp_path, dp_rank=0))
    assert Counter(part.global_step for part in parts) == {1: times, 2: 1}
    assert all(part.batch["tokens"][:, 0].tolist() == [1, 2] for part in parts)


def test_every_model_checkpoint_is_behind_the_export(tmp_path: Path) -> None:
    """Whatever it is written for, and by whatever module: that of a step without an update, and one in the middle of a step."""
    steps = [[microbatch(step, step + 1)] for step in range(7)]
    found = train(tmp_path, steps, saves={2, 3, 6}, exits={5}, overflows={3, 6})
    statuses = dict.fromkeys(range(1, 8), StepStatus.APPLIED) | dict.fromkeys((3, 6), StepStatus.SKIPPED_UPDATE)
    assert found == {last: {step: statuses[step] for step in range(1, last + 1)} for last in (2, 3, 4, 6)}
    assert RunReader(tmp_path).attempt(1).step_status() == statuses
    for last in found:
        state = json.loads((tmp_path / "saved" / "kiseki_export" / f"iter_{last:07d}.json").read_text(encoding="utf-8"))
        assert (state["attempt"], state["global_step"]) == (1, last)
    assert len(list((tmp_path / "saved" / "kiseki_export").iterdir())) == len(found)


def test_a_trainer_that_saves_by_another_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="by save_checkpoint of json, found none there"):
        train(tmp_path, [], saves_in="json")
    assert not (tmp_path / "export").exists()


def test_micro_batches_without_a_sample_index(tmp_path: Path) -> None:
    without = {"tokens": torch.zeros(2, LENGTH, dtype=torch.int64)}
    with pytest.raises(InputError, match=r"say their sample_index, found tokens; .*export.indexed\(dataset\)"):
        train(tmp_path, [[without]])
