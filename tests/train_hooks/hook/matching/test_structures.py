"""Micro-batches of every shape of container and tensor, and loaders with a life of their own."""

import copy
from collections import UserDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from tests.train_hooks.hook.toy import LENGTH, SLOTS, Toy, attach, exported, exported_ids, microbatch, rows, same
from train_hooks.export_format.errors import InputError
from train_hooks.hook.tensors.batches import TokensSelector, name_microbatch, without_metadata


@dataclass
class Batch:
    ids: Tensor
    labels: Tensor


class Pair(NamedTuple):
    ids: Tensor
    labels: Tensor


IDS = microbatch(1)["input_ids"]
LABELS = microbatch(1)["labels"]


@pytest.mark.parametrize(
    ("batch", "tokens", "name", "others"),
    [
        ({"input_ids": IDS, "labels": LABELS}, "input_ids", "input_ids", ["labels"]),
        ({"x": IDS, "y": LABELS}, "x", "x", ["y"]),
        (UserDict(input_ids=IDS, labels=LABELS), "input_ids", "input_ids", ["labels"]),
        ((IDS, LABELS), 0, "0", ["1"]),
        ([LABELS, IDS], -1, "1", ["0"]),
        (({"input": IDS, "positions": LABELS}, LABELS), "0.input", "0.input", ["0.positions", "1"]),
        (({"input": IDS}, LABELS), lambda batch: batch[0]["input"], "0.input", ["1"]),
        (Batch(IDS, LABELS), "ids", "ids", ["labels"]),
        (Batch(IDS, LABELS), lambda batch: batch.ids, "ids", ["labels"]),
        (Pair(IDS, LABELS), 0, "ids", ["labels"]),
        (IDS, "input_ids", "input_ids", []),
        ({"input_ids": IDS.numpy(), "n": 3, "name": "x", "texts": ["a", "b"]}, "input_ids", "input_ids", []),
    ],
)
def test_names(batch: Any, tokens: TokensSelector, name: str, others: list[str]) -> None:
    named = name_microbatch(batch, tokens)
    assert named.tokens == name
    assert torch.equal(named.tensors[name], IDS)
    assert [other for other in named.tensors if other != name] == others


def test_a_function_that_gives_something_else() -> None:
    with pytest.raises(InputError, match=r"found torch\.float32"):
        name_microbatch(microbatch(1), lambda batch: batch["input_ids"].float())


def test_metadata_is_taken_out_and_nothing_else_changes() -> None:
    plain = microbatch(1)
    assert without_metadata(plain) is plain
    full = microbatch(1, documents=True)
    assert list(without_metadata(full)) == ["input_ids", "labels"]
    assert "segments" in full
    nested = without_metadata((full, LABELS))
    assert list(nested[0]) == ["input_ids", "labels"]
    assert nested[1] is LABELS
    kept = without_metadata(UserDict(full))
    assert isinstance(kept, UserDict)
    assert list(kept) == ["input_ids", "labels"]


@pytest.mark.parametrize("kind", ["tuple", "dataclass", "tensor"])
def test_exported_from_other_containers(kind: str, tmp_path: Path) -> None:
    model = Toy()
    batch: Any = {"tuple": (IDS, LABELS), "dataclass": Batch(IDS, LABELS), "tensor": IDS}[kind]
    selectors: dict[str, TokensSelector] = {"tuple": 0, "dataclass": "ids", "tensor": "input_ids"}
    with attach(model, tmp_path) as hook:
        for fetched in hook.wrap([batch], tokens=selectors[kind]):
            assert fetched is batch
            model(IDS, LABELS).backward()
        hook.commit(1)
    (part,) = exported(tmp_path).values()
    names = {"tuple": ["0", "1"], "dataclass": ["ids", "labels"], "tensor": ["input_ids"]}[kind]
    assert same([part.batch[name] for name in names], [IDS, LABELS][: len(names)])
    assert list(part.batch) == names


def test_every_tensor_comes_back(tmp_path: Path) -> None:
    model = Toy()
    batch = {
        **microbatch(3, documents=True),
        "position_ids": torch.arange(LENGTH).repeat(SLOTS, 1),
        "loss_mask": torch.rand(SLOTS, LENGTH),
        "bias": torch.randn(SLOTS, 1, LENGTH, LENGTH).to(torch.bfloat16),
        "keep": torch.rand(SLOTS, LENGTH) > 0.5,
        "weight": torch.rand(SLOTS, dtype=torch.float64),
        "cu_seqlens": torch.tensor([0, 10, 16, 26, 32], dtype=torch.int32),
        "causal": torch.ones(1, LENGTH, LENGTH).tril().to(torch.float8_e5m2),
        "temperature": torch.tensor(0.5),
        "empty": torch.zeros(SLOTS, 0),
    }
    with attach(model, tmp_path) as hook:
        for fetched in hook.wrap([batch]):
            model(fetched["input_ids"]).backward()
        hook.commit(1)
    (part,) = exported(tmp_path).values()
    expected = {name: value for name, value in batch.items() if name not in ("segments", "sample_index")}
    assert part.batch.keys() == expected.keys()
    for name, value in expected.items():
        found = part.batch[name]
        assert (found.dtype, found.shape) == (value.dtype, value.shape), name
        assert _bits(found) == _bits(value), name
    assert part.segments == tuple(tuple(of_slot) for of_slot in batch["segments"])
    assert part.sample_index == tuple(batch["sample_index"].tolist())


def _bits(tensor: Tensor) -> bytes:
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist()) if tensor.numel() else b""


def test_views_of_one_storage_are_copied_once(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        whole = torch.randint(0, 90, (SLOTS, LENGTH + 1))
        expected = whole.clone()
        for batch in hook.wrap([{"input_ids": whole[:, :-1], "labels": whole[:, 1:]}]):
            copies = hook._consumption._pending.by_number[1].copies
            assert copies["input_ids"].buffer is copies["labels"].buffer
            model(**batch).backward()
            whole.zero_()
        hook.commit(1)
    assert same(exported_ids(tmp_path), [expected[:, :-1]])
    assert same(exported_ids(tmp_path, "labels"), [expected[:, 1:]])


def test_the_key_costs_no_data(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        for batch in hook.wrap([microbatch(1)]):
            model(**batch).backward()
        hook.commit(1)
    for row in rows(tmp_path):
        by_name = {tensor.name: tensor for tensor in row.tensors}
        assert (by_name["input_ids"].encoding, by_name["input_ids"].dtype, by_name["input_ids"].data) == (
            "tokens",
            "<i8",
            b"",
        )
        assert (by_name["labels"].encoding, len(by_name["labels"].data)) == ("next", 8)


class Stateful:
    """As torchdata's StatefulDataLoader."""

    def __init__(self) -> None:
        self.state: dict[str, int] = {}
        self.epoch = 0

    def __iter__(self) -> Any:
        return iter([microbatch(self.epoch)])

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]


def test_attributes_pass_through(tmp_path: Path) -> None:
    with attach(Toy(), tmp_path) as hook:
        loader: Any = hook.wrap(Stateful())
        loader.load_state_dict({"epoch": 7})
        loader.epoch += 1
        assert loader.state_dict() == {"epoch": 8}
        assert copy.copy(loader).epoch == 8
        with pytest.raises(AttributeError):
            _ = loader.sampler
        data: Any = range(8)
        sampler = DistributedSampler[int](data, num_replicas=2, rank=0)
        wrapped: Any = hook.wrap(DataLoader(data, sampler=sampler))
        wrapped.sampler.set_epoch(3)
        assert sampler.epoch == 3
        with pytest.raises(TypeError):
            len(hook.wrap(iter([])))


def test_an_iterator_stays_one(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        iterator: Any = hook.wrap(iter([microbatch(0), microbatch(1)]))
        model(**next(iterator)).backward()
        model(**next(iterator)).backward()
        assert next(iterator, None) is None
        hook.commit(1)
        assert not hasattr(hook.wrap([1]), "__next__")
    assert same(exported_ids(tmp_path), model.seen)
