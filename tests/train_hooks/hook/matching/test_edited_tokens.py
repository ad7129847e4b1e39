"""Tokens that somebody edited between the loader and the forward are recorded as they were fed, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.train_hooks.hook.matching.forwards import Ids, ids, refused
from tests.train_hooks.hook.toy import (
    Toy,
    attach,
    exported_ids,
    microbatch,
    microbatches,
    same,
)
from train_hooks.export_format.errors import Mismatch
from train_hooks.hook.tensors.snapshots import equal_bits

EDITS: dict[str, Callable[[Tensor], Tensor]] = {
    "a copy": lambda x: x.clone().index_fill_(1, torch.tensor([9]), 3),
    "the last token": lambda x: torch.cat([x[:, :-1], (x[:, -1:] + 1) % 90], 1),
    "shifted": lambda x: x.roll(1, 1),
    "two rows mixed": lambda x: torch.cat([x[:1, :8], x[1:2, 8:]], 1),
    "the middle": lambda x: x[:, 3:9],
    "joined in a row": lambda x: x.reshape(2, -1),
}


@pytest.mark.parametrize("how", EDITS)
@pytest.mark.parametrize("labels", [False, True])
def test_tokens_that_were_edited_out_of_place_are_refused(tmp_path: Path, how: str, labels: bool) -> None:
    """Also where another tensor of the forward says which micro-batch it was."""

    def feed(model: nn.Module, batches: list[dict[str, Any]]) -> None:
        edited = EDITS[how](batches[0][ids])
        model(edited, batches[0]["labels"], batches[0][ids]) if labels else model(edited)

    if how == "joined in a row":
        model = Ids()
        with attach(model, tmp_path) as hook:
            feed(model, list(hook.wrap([microbatch(0, slots=4)])))
            hook.commit(1)
        assert same(exported_ids(tmp_path), [microbatch(0, slots=4)[ids]])
    else:
        refused(tmp_path, feed, "step 1: 1 of 1 forwards got something else than fetched micro-batches")


@pytest.mark.parametrize("through", ["numpy", "data", "torch"])
@pytest.mark.parametrize("whole", [True, False])
def test_every_token_that_was_edited_in_place_is_recorded(tmp_path: Path, through: str, whole: bool) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(2)), 1):
            x, y = batch[ids], batch["labels"]
            for tensor in (x, y):
                target: Any = {"numpy": tensor.numpy(), "data": tensor.data, "torch": tensor}[through]
                target[:, 3:9] = 7 + step
            model(x, y) if whole else model(x[:], labels=y)
            hook.commit(step)
            assert int(x[0, 4]) == 7 + step
    assert same(exported_ids(tmp_path), model.seen)
    assert [int(labels[0, 4]) for labels in exported_ids(tmp_path, "labels")] == [8, 9]


def test_a_clone_of_tokens_that_were_edited_in_place_is_refused(tmp_path: Path) -> None:
    """Nothing says that the clone is of this micro-batch."""

    def feed(model: nn.Module, batches: list[dict[str, Any]]) -> None:
        batches[0][ids].numpy()[:, 5] = 1
        model(batches[0][ids].clone())

    refused(tmp_path, feed, "nearest to fetched micro-batch 1, where row 0 has .* at token 5, the forward got 1")


def test_a_forward_without_integers_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, lambda model, _: model(torch.zeros(2, 3)), "got no tensor of integers", num=1)


def test_numpy_is_not_needed_for_equal_bits() -> None:
    """Floats that are no numbers are the same bits."""
    nan = torch.tensor([np.nan, 1.0])
    assert equal_bits(nan, nan.clone())
    assert not equal_bits(nan, nan.double())


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("record", ["loader", "forward"])
def test_what_other_pre_hooks_leave_is_what_the_forward_gets(tmp_path: Path, before: bool, record: Any) -> None:
    model = Toy()

    def edit(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].masked_fill(args[0] > 80, 1), *args[1:])

    if before:
        model.register_forward_pre_hook(edit)
    hook = attach(model, tmp_path)
    if not before:
        model.register_forward_pre_hook(edit)
    for step, batch in enumerate(hook.wrap(microbatches(3), record=record), 1):
        model(batch[ids], batch["labels"])
        if record == "loader":
            with pytest.raises(Mismatch, match="step 1: 1 of 1 forwards"):
                hook.commit(step)
            break
        hook.commit(step)
    hook.close()
    assert len(model._forward_hooks) == 0
    assert same(exported_ids(tmp_path), model.seen if record == "forward" else [])


def test_forwards_within_functional_transforms(tmp_path: Path) -> None:
    model = Toy()
    parameters = dict(model.named_parameters())
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(2)), 1):

            def loss(given: dict[str, Tensor], batch: dict[str, Any] = batch) -> Tensor:
                found: Tensor = torch.func.functional_call(model, given, (batch[ids],), {"labels": batch["labels"]})
                return found

            torch.func.grad(loss)({name: each.detach() for name, each in parameters.items()})
            hook.commit(step)
    assert same(exported_ids(tmp_path), [microbatch(seed)[ids] for seed in range(2)])
