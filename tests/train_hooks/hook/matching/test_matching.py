"""What counts as consumed: exactly what forwards of the training got, whatever else goes on around them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset

from tests.train_hooks.hook.toy import (
    LENGTH,
    SLOTS,
    Toy,
    attach,
    exported,
    exported_ids,
    microbatch,
    microbatches,
    same,
    train_step,
)
from train_hooks.export_format.errors import ExportStopped, InputError, Mismatch


class Items(Dataset[dict[str, Tensor]]):
    """Eleven sequences."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in microbatch(index, slots=1).items()}


@pytest.fixture
def model() -> Toy:
    return Toy()


def test_prefetching_workers_and_drop_last(model: Toy, tmp_path: Path) -> None:
    with attach(model, tmp_path) as hook:
        loader = hook.wrap(DataLoader(Items(), batch_size=SLOTS, num_workers=2, prefetch_factor=3, drop_last=True))
        assert len(loader) == 5
        for step, batch in enumerate(loader, 1):
            train_step(model, [batch])
            hook.commit(step)
            if step == 4:
                break
    assert len(model.seen) == 4
    assert same(exported_ids(tmp_path), model.seen)


def test_accumulation_with_batches_fetched_ahead(model: Toy, tmp_path: Path) -> None:
    with attach(model, tmp_path) as hook:
        batches = list(hook.wrap(microbatches(6)))
        for step in (1, 2):
            train_step(model, batches[3 * step - 3 : 3 * step])
            hook.commit(step)
    assert same(exported_ids(tmp_path), model.seen)
    assert sorted(exported(tmp_path)) == [(step, 0, index) for step in (1, 2) for index in range(3)]


def test_evaluation_between_training(model: Toy, tmp_path: Path) -> None:
    with attach(model, tmp_path) as hook:
        trained = []
        for step, batch in enumerate(hook.wrap(microbatches(3)), 1):
            model.eval()
            with torch.no_grad():
                model(**microbatch(100 + step))
                model(**batch)  # the very training micro-batch, evaluated before it is trained on
            model.train()
            with torch.no_grad():
                model(**microbatch(200 + step))  # forgot eval()
            with torch.inference_mode():
                model(**microbatch(300 + step))
            train_step(model, [batch])
            trained.append(batch["input_ids"])
            hook.commit(step)
    assert same(exported_ids(tmp_path), trained)


def test_evaluation_with_gradients_is_refused_unless_paused(model: Toy, tmp_path: Path) -> None:
    hook = attach(model, tmp_path)
    loader = iter(hook.wrap(microbatches(4)))
    train_step(model, [next(loader)])
    with hook.paused():
        train_step(model, [microbatch(99)])
    hook.commit(1)
    train_step(model, [next(loader), microbatch(99)])
    with pytest.raises(
        ExportStopped, match=r"step 2: 1 of 2 forwards .* 'input_ids' \[2, 16\] that the wrapped loader did"
    ):
        hook.commit(2)
    hook.close()
    assert same(exported_ids(tmp_path), model.seen[:1])


def test_dry_runs_before_training(model: Toy, tmp_path: Path) -> None:
    with attach(model, tmp_path) as hook:
        loader = iter(hook.wrap(microbatches(2)))
        model(torch.zeros(1, 4, dtype=torch.int64)).backward()
        model(torch.zeros(SLOTS, LENGTH, dtype=torch.int64)).backward()
        train_step(model, [next(loader)])
        hook.commit(1)
        train_step(model, [next(loader)])
        hook.commit(2)
    assert same(exported_ids(tmp_path), model.seen[2:])


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_around_the_root(model: Toy, tmp_path: Path, reentrant: bool) -> None:
    with attach(model, tmp_path) as hook:
        batches = list(hook.wrap(microbatches(4)))
        for step in (1, 2):
            for batch in batches[2 * step - 2 : 2 * step]:
                anchor = torch.ones((), requires_grad=True)  # a reentrant checkpoint needs an input with a gradient
                loss = checkpoint(
                    lambda ids, labels, one: model(ids, labels) * one,
                    batch["input_ids"], batch["labels"], anchor, use_reentrant=reentrant,
                )  # fmt: skip
                loss.backward()
            hook.commit(step)
    assert len(model.seen) == 8
    assert same(exported_ids(tmp_path), model.seen[::2])


def test_checkpointing_inside(model: Toy, tmp_path: Path) -> None:
    class Checkpointed(torch.nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return checkpoint(super().forward, input, use_reentrant=False)  # type: ignore[no-any-return]

    model.inner = Checkpointed(8, 8)
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(2)), 1):
            train_step(model, [batch])
            hook.commit(step)
    assert same(exported_ids(tmp_path), model.seen)


@pytest.mark.parametrize("how", ["compiled before", "compiled after", "in place before", "in place after"])
def test_compile(model: Toy, tmp_path: Path, how: str) -> None:
    fed: list[Tensor] = []
    called: Any = model
    if how == "compiled before":
        called = torch.compile(model, backend="aot_eager", fullgraph=True)
    if how == "in place before":
        model.compile(backend="eager", fullgraph=True)
    with attach(called, tmp_path) as hook:
        if how == "compiled after":
            called = torch.compile(model, backend="eager", fullgraph=True)
        if how == "in place after":
            model.compile(backend="eager")
        for step, batch in enumerate(hook.wrap(microbatches(3)), 1):
            called(**batch).backward()
            fed.append(batch["input_ids"])
            hook.commit(step)
    assert same(exported_ids(tmp_path), fed)
    torch._dynamo.reset()


def test_skipped_batches(model: Toy, tmp_path: Path) -> None:
    with attach(model, tmp_path) as hook:
        for index, batch in enumerate(hook.wrap(microbatches(6))):
            if index % 2 == 0:
                continue
            train_step(model, [batch])
            hook.commit(1 + index // 2)
        assert hook._consumption.num_pending <= 3
    assert same(exported_ids(tmp_path), model.seen)


def test_order_within_a_step_is_the_forwards(model: Toy, tmp_path: Path) -> None:
    with attach(model, tmp_path) as hook:
        batches = list(hook.wrap(microbatches(3)))
        train_step(model, batches[::-1])
        hook.commit(1)
    assert same(exported_ids(tmp_path), model.seen)


def test_changed_in_place_after_the_forward(model: Toy, tmp_path: Path) -> None:
    originals = [batch["input_ids"].clone() for batch in microbatches(2)]
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(2)), 1):
            train_step(model, [batch])
            batch["input_ids"].zero_()
            batch["labels"].zero_()
            hook.commit(step)
    assert same(exported_ids(tmp_path), originals)
    assert same(exported_ids(tmp_path, "labels"), [batch["labels"] for batch in microbatches(2)])


@pytest.mark.parametrize("through", ["torch", "numpy"])
def test_changed_in_place_between_fetch_and_forward(model: Toy, tmp_path: Path, through: str) -> None:
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(2)), 1):
            ids = batch["input_ids"]
            (ids if through == "torch" else ids.numpy())[:, :3] = 1
            if through == "torch":
                batch["labels"][:, -2:] = -100
            train_step(model, [batch])
            hook.commit(step)
            assert ids[0, 0] == 1
    assert same(exported_ids(tmp_path), model.seen)
    if through == "torch":
        assert all((labels[:, -2:] == -100).all() for labels in exported_ids(tmp_path, "labels"))


def test_a_batch_emptied_before_the_forward(model: Toy, tmp_path: Path) -> None:
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(2)), 1):
            ids = batch.pop("input_ids")
            batch.clear()
            model(ids).backward()
            hook.commit(step)
    assert same(exported_ids(tmp_path), model.seen)
    assert same(exported_ids(tmp_path, "labels"), [batch["labels"] for batch in microbatches(2)])


def test_a_tensor_given_other_memory_before_the_forward(model: Toy, tmp_path: Path) -> None:
    """Torch's version counter does not tell of it."""
    with attach(model, tmp_path) as hook:
        batches = list(hook.wrap(microbatches(2)))
        version = batches[0]["input_ids"]._version
        batches[0]["input_ids"].data = batches[1]["input_ids"].clone()
        assert batches[0]["input_ids"]._version == version
        model(batches[0]["input_ids"]).backward()
        hook.commit(1)
    assert same(exported_ids(tmp_path), model.seen)


EDGES = (0, 65_535, 65_536, -1, -100, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63 - 1, -(2**63))


@pytest.mark.parametrize("when", ["before the fetch", "between fetch and forward", "after the forward"])
def test_labels_of_every_size_come_back_exactly(tmp_path: Path, when: str) -> None:
    class Limited(Toy):
        def forward(self, input_ids: Tensor, labels: Tensor | None = None, limits: Tensor | None = None) -> Tensor:  # noqa: ARG002
            return super().forward(input_ids, labels)

    model = Limited()
    expected = microbatch(0)["labels"]
    batch = {**microbatch(0), "limits": expected.clone()}

    def edit() -> None:
        batch["limits"][:, : len(EDGES)] = torch.tensor(EDGES)

    with attach(model, tmp_path) as hook:
        if when == "before the fetch":
            edit()
        (fetched,) = hook.wrap([batch])
        if when == "between fetch and forward":
            edit()
        model(**fetched).backward()
        if when == "after the forward":
            edit()
        hook.commit(1)
    if when != "after the forward":
        expected[:, : len(EDGES)] = torch.tensor(EDGES)
    assert same(exported_ids(tmp_path, "limits"), [expected])
    assert same(exported_ids(tmp_path), model.seen)


@pytest.mark.parametrize("through", ["torch", "numpy"])
def test_a_loader_that_reuses_its_buffers(model: Toy, tmp_path: Path, through: str) -> None:
    buffer = microbatch(0)

    def loader() -> Any:
        for index in range(4):
            for name, value in microbatch(index).items():
                (buffer[name] if through == "torch" else buffer[name].numpy())[:] = value
            yield buffer

    with attach(model, tmp_path) as hook:
        batches = iter(hook.wrap(loader()))
        for step in (1, 2):
            train_step(model, [next(batches)])
            train_step(model, [{name: value.clone() for name, value in next(batches).items()}])
            hook.commit(step)
    assert same(exported_ids(tmp_path), model.seen)


def test_tokens_moved_cast_flattened_or_cut(model: Toy, tmp_path: Path) -> None:
    feeds: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda ids: ids.clone(),
        lambda ids: ids.to(torch.int32),
        lambda ids: ids.flatten(),
        lambda ids: ids[:, :-1],
        lambda ids: ids[:, :-1].clone(),
        lambda ids: ids[None],
    )
    with attach(model, tmp_path) as hook:
        for step, (batch, feed) in enumerate(zip(hook.wrap(microbatches(len(feeds))), feeds, strict=True), 1):
            model(feed(batch["input_ids"])).backward()
            hook.commit(step)
    assert same(exported_ids(tmp_path), [batch["input_ids"] for batch in microbatches(len(feeds))])


def test_labels_equal_to_the_inputs_and_equal_micro_batches(model: Toy, tmp_path: Path) -> None:
    batch = microbatch(5)
    repeated = [{"input_ids": batch["input_ids"].clone(), "labels": batch["input_ids"].clone()} for _ in range(3)]
    with attach(model, tmp_path) as hook:
        train_step(model, list(hook.wrap(repeated)))
        hook.commit(1)
    assert same(exported_ids(tmp_path), model.seen)
    assert same(exported_ids(tmp_path, "labels"), model.seen)


def test_a_second_epoch(model: Toy, tmp_path: Path) -> None:
    with attach(model, tmp_path) as hook:
        loader = hook.wrap([microbatch(seed) for seed in range(3)])
        step = 0
        for epoch in range(2):
            for batch in loader:
                step += 1
                train_step(model, [batch])
                hook.commit(step)
                if epoch == 0 and step == 2:
                    break
    assert same(exported_ids(tmp_path), model.seen)


def test_forwards_that_got_no_fetched_batch_at_all(model: Toy, tmp_path: Path) -> None:
    hook = attach(model, tmp_path)
    train_step(model, [microbatch(1)])
    with pytest.raises(ExportStopped, match="step 1: expected forwards of fetched micro-batches, found 1 forwards"):
        hook.commit(1)
    hook.close()


def test_the_wrong_module(model: Toy, tmp_path: Path) -> None:
    hook = attach(torch.nn.Sequential(model), tmp_path)
    train_step(model, list(hook.wrap(microbatches(1))))
    with pytest.raises(ExportStopped, match="attach to the outermost callable"):
        hook.commit(1)
    hook.close()


def test_consume_for_skipped_data(model: Toy, tmp_path: Path) -> None:
    with attach(model, tmp_path) as hook:
        batches = list(hook.wrap(microbatches(4)))
        hook.consume(2)
        hook.commit(1, status="skipped_data")
        train_step(model, batches[2:])
        hook.commit(2)
        with pytest.raises(ExportStopped, match="expected 1 fetched"):
            hook.consume()
    found = exported(tmp_path)
    assert [part.status.value for part in found.values()] == ["skipped_data"] * 2 + ["applied"] * 2
    assert same([part.batch["input_ids"] for part in found.values()], [batch["input_ids"] for batch in batches])


def test_what_differs_is_named(model: Toy, tmp_path: Path) -> None:
    hook = attach(model, tmp_path)
    batch = next(iter(hook.wrap(microbatches(1))))
    edited = batch["input_ids"].clone()
    edited[1, 5] = 3
    model(edited, batch["labels"])
    was = int(batch["input_ids"][1, 5])
    with pytest.raises(
        Mismatch, match=rf"micro-batch 1, where row 1 has {was} at token 5, the forward got 3 \(1 tokens"
    ):
        hook.commit(1)
    with pytest.raises(Mismatch, match="step 1:"):  # and so it stays
        hook.commit(1)
    hook.close()
    assert exported_ids(tmp_path) == []


def test_a_wrong_length_and_a_missing_key(model: Toy, tmp_path: Path) -> None:
    with attach(model, tmp_path) as hook:
        with pytest.raises(InputError, match=r"expected tokens \[num_slots, 16\] at 'input_ids', found \[2, 15\]"):
            next(iter(hook.wrap([{"input_ids": torch.zeros(2, 15, dtype=torch.int64)}])))
        with pytest.raises(InputError, match="found dict with tensors ids; name the token tensor"):
            next(iter(hook.wrap([{"ids": torch.zeros(2, 16, dtype=torch.int64)}])))
        with pytest.raises(InputError, match="expected integers"):
            next(iter(hook.wrap([{"input_ids": torch.zeros(2, 16)}])))
