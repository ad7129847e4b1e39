"""`record="forward"`: what the forward gets is recorded, with the documents of the loader's rows."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train_hooks.hook.matching.forwards import ids
from tests.train_hooks.hook.matching.test_evidence import known
from tests.train_hooks.hook.toy import (
    Toy,
    attach,
    exported,
    exported_ids,
    microbatch,
    microbatches,
    rows,
    same,
)
from train_hooks.export_format.errors import InputError


def masked(tokens: Tensor, seed: int) -> Tensor:
    chosen = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed)) < 0.15
    return tokens.masked_fill(chosen, 1)


def test_what_the_forward_gets_is_recorded(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        loader = hook.wrap((microbatch(seed, documents=True) for seed in range(4)), record="forward")
        for step, batch in enumerate(loader, 1):
            tokens = masked(batch[ids], step)
            model(tokens, labels=batch["labels"].masked_fill(tokens != 1, -100)).backward()
            model(tokens)  # again, as SAM does
            hook.commit(step)
    assert same(exported_ids(tmp_path), model.seen[::2])
    for step, part in ((step, part) for (step, _, _), part in exported(tmp_path).items()):
        whole = microbatch(step - 1, documents=True)
        assert torch.equal(part.batch["labels"], whole["labels"].masked_fill(masked(whole[ids], step) != 1, -100))
        assert part.segments == tuple(map(tuple, whole["segments"]))
        assert part.sample_index == tuple(whole["sample_index"].tolist())
    assert {known(row) for row in rows(tmp_path)} == {(None, None, None)}


def test_what_the_forward_gets_of_nobody_has_no_documents(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        for step, _ in enumerate(hook.wrap((microbatch(s, documents=True) for s in range(3)), record="forward"), 1):
            model(microbatch(100 + step)[ids]).backward()
            hook.commit(step)
    assert same(exported_ids(tmp_path), model.seen)
    assert {(part.segments, part.sample_index) for part in exported(tmp_path).values()} == {(((), ()), (None, None))}


def test_one_way_to_record_for_all_loaders(tmp_path: Path) -> None:
    with attach(Toy(), tmp_path) as hook:
        hook.wrap([], record="forward")
        with pytest.raises(InputError, match="expected one way for all loaders"):
            hook.wrap([])


def test_generation_with_gradients_in_evaluation_mode_is_not_recorded(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(2), record="forward"), 1):
            model.eval()
            model(microbatch(50 + step)[ids])
            model.train()
            model(batch[ids])
            hook.commit(step)
    assert same(exported_ids(tmp_path), model.seen[1::2])


def test_documents_of_rows_that_are_mostly_padding(tmp_path: Path) -> None:
    model = Toy()
    padded = [microbatch(seed, documents=True) for seed in range(5)]
    for batch in padded:
        batch[ids][:, 5:] = 0
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(padded, record="forward"), 1):
            model(batch[ids].index_fill(1, torch.tensor([1]), 3))
            hook.commit(step)
    found = [part.sample_index for part in exported(tmp_path).values()]
    assert found == [tuple(batch["sample_index"].tolist()) for batch in padded]


def test_equal_copies_are_not_repetitions_where_the_forward_is_recorded(tmp_path: Path) -> None:
    """Nothing else tells two rollouts that came out alike from one that was fed twice."""
    model = Toy()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap(microbatches(1), record="forward")
        for tokens in (batch[ids], batch[ids], batch[ids].clone()):
            model(tokens)
        hook.commit(1)
    assert same(exported_ids(tmp_path), model.seen[:2])
