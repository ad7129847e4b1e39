"""Labels, masks and positions: recorded as the forward got them, as declared, or as the loader yielded them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.train_hooks.hook.matching.forwards import Ids, ids
from tests.train_hooks.hook.matching.test_evidence import Anything
from tests.train_hooks.hook.toy import (
    LENGTH,
    SLOTS,
    Toy,
    attach,
    exported_ids,
    microbatch,
    microbatches,
    rows,
    same,
)
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import Evidence


@pytest.mark.parametrize("how", ["keyword", "flat", "position", "unnamed"])
def test_labels_that_were_edited_out_of_place(tmp_path: Path, how: str) -> None:
    model: nn.Module = Anything() if how == "unnamed" else Toy()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap([microbatch(1)])
        masked = batch["labels"].masked_fill(batch["labels"] > 50, -100)
        given = masked.flatten() if how == "flat" else masked
        model(batch[ids], labels=given) if how == "keyword" else model(batch[ids], given)
        hook.commit(1)
    (found,) = exported_ids(tmp_path, "labels")
    (evidence,) = {tensor.evidence for row in rows(tmp_path) for tensor in row.tensors if tensor.name == "labels"}
    if how == "unnamed":
        assert torch.equal(found, batch["labels"])
        assert evidence is Evidence.LOADER
    else:
        assert torch.equal(found, masked)
        assert evidence is None


@pytest.mark.parametrize("kind", ["torch", "numpy", "list"])
def test_labels_that_the_loss_outside_was_computed_from_are_declared(tmp_path: Path, kind: str) -> None:
    model = Ids()
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(2)), 1):
            masked = batch["labels"].masked_fill(batch["labels"] > 50, -100)
            model(batch[ids])
            hook.trained_on(
                labels={"torch": masked, "numpy": masked.numpy(), "list": masked.tolist()}[kind], weights=[0.5, 1.0]
            )
            hook.commit(step)
            assert torch.equal(masked, batch["labels"].masked_fill(batch["labels"] > 50, -100))
    found = exported_ids(tmp_path, "labels")
    assert same(
        found, [microbatch(seed)["labels"].masked_fill(microbatch(seed)["labels"] > 50, -100) for seed in (0, 1)]
    )
    evidence = {tensor.name: tensor.evidence for tensor in rows(tmp_path)[0].tensors}
    assert evidence == {ids: None, "labels": Evidence.DECLARED, "weights": Evidence.DECLARED}


def test_trained_on_wants_a_forward_and_its_rows(tmp_path: Path) -> None:
    model = Ids()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap(microbatches(1))
        with pytest.raises(InputError, match="trained_on: expected a forward of a fetched micro-batch"):
            hook.trained_on(labels=batch["labels"])
        model(batch[ids])
        with pytest.raises(
            InputError, match=r"expected 'labels' with an item for each of 2 rows .* found shape \[1, 16\]"
        ):
            hook.trained_on(labels=batch["labels"][:1])
        with pytest.raises(InputError, match="expected numbers"):
            hook.trained_on(labels=["a", object()])
        hook.commit(1)


def test_labels_that_are_the_very_tokens_until_they_are_masked(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap([dict.fromkeys((ids, "labels"), microbatch(1)[ids])])
        masked = batch["labels"].masked_fill(batch["labels"] > 50, -100)
        model(batch[ids], labels=masked)
        hook.commit(1)
    assert same(exported_ids(tmp_path, "labels"), [masked])


def test_the_same_tokens_with_other_labels_are_no_repetition(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap(microbatches(1))
        for labels in (batch["labels"], batch["labels"] // 2, batch["labels"] // 2, batch["labels"]):
            model(batch[ids], labels=labels)
        hook.commit(1)
    assert same(exported_ids(tmp_path, "labels"), [batch["labels"], batch["labels"] // 2])


def test_arguments_that_are_given_by_position_under_another_name(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap(microbatches(1))
        model(batch[ids], batch[ids])
        hook.commit(1)
    assert same(exported_ids(tmp_path, "labels"), [batch[ids]])


def test_a_tensor_that_was_not_fed_is_the_loaders(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap([{ids: microbatch(1)[ids], "mask": torch.ones(SLOTS, LENGTH, dtype=torch.bool)}])
        model(batch[ids], labels=batch[ids])
        hook.commit(1)
    assert {tensor.name: tensor.evidence for tensor in rows(tmp_path)[0].tensors} == {
        ids: None,
        "mask": Evidence.LOADER,
    }


def test_labels_without_their_first_column_are_recorded_so(tmp_path: Path) -> None:
    model = Anything()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap(microbatches(1))
        model(batch[ids][:, :-1], labels=batch["labels"][:, 1:])
        hook.commit(1)
    (labels,) = exported_ids(tmp_path, "labels")
    assert torch.equal(labels, batch["labels"][:, 1:])
    assert {tensor.evidence for tensor in rows(tmp_path)[0].tensors} == {None}
