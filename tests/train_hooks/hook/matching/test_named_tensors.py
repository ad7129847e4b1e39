"""Which tensor is the tokens, which others are recorded, and what a forward's arguments are called."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore
from torch.nn.parallel import DistributedDataParallel

from tests.train_hooks.hook.toy import LENGTH, SLOTS, Toy, attach, exported, exported_ids, microbatch, rows, same
from train_hooks.export_format.errors import InputError
from train_hooks.hook.tensors.batches import forward_tensors, name_microbatch, parameter_names

IDS = microbatch(1)["input_ids"]
LABELS = microbatch(1)["labels"]
LISTS = IDS.tolist()


class Pair(NamedTuple):
    ids: Any
    labels: Any


@dataclass
class Batch:
    ids: Any
    labels: Any


def names(batch: Any, **options: Any) -> list[str]:
    """The names of what is recorded."""
    return list(name_microbatch(batch, options.pop("tokens", "input_ids"), **options).tensors)


def read_only(array: Any) -> Any:
    """The same array, which nobody may write to."""
    array.flags.writeable = False
    return array


# ---- tokens of one dimension


@pytest.mark.parametrize("more", [{}, {"x": [1]}])
def test_packed_tokens_are_one_row(more: dict[str, Any]) -> None:
    ids = torch.arange(6, dtype=torch.int32)
    named = name_microbatch({"input_ids": ids, **more}, "input_ids")
    assert named.tensors["input_ids"].shape == (1, 6)
    assert named.tensors["input_ids"].data_ptr() == ids.data_ptr()
    ids += 1
    assert named.tensors["input_ids"]._version == ids._version
    assert name_microbatch(ids[::2], "input_ids").tensors["input_ids"].tolist() == [[1, 3, 5]]
    assert name_microbatch({"input_ids": [1, 2, 3]}, "input_ids").tensors["input_ids"].tolist() == [[1, 2, 3]]


def test_the_trainers_microbatch_keeps_its_shape() -> None:
    batch = {"input_ids": torch.arange(6)}
    name_microbatch(batch, "input_ids")
    assert batch["input_ids"].shape == (6,)


@pytest.mark.parametrize(
    "tokens",
    [torch.tensor(3), torch.zeros(2, 3, 4, dtype=torch.int64), torch.zeros(3), torch.zeros(3, dtype=torch.bool),
     torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(2, 3, dtype=torch.bool)],
)  # fmt: skip
def test_other_tokens_are_refused(tokens: Tensor) -> None:
    for more in ({}, {"x": 1}):
        with pytest.raises(
            InputError, match=r"expected integers \[num_slots, sequence_length\] or \[length\] at 'input_ids', found"
        ):
            name_microbatch({"input_ids": tokens, **more}, "input_ids")


def test_a_packed_row_is_exported(tmp_path: Path) -> None:
    model = Toy()
    batches = [{"input_ids": IDS[slot].clone(), "position_ids": torch.arange(LENGTH)} for slot in range(SLOTS)]
    with attach(model, tmp_path) as hook:
        for step, fetched in enumerate(hook.wrap(batches), 1):
            assert fetched["input_ids"].shape == (LENGTH,)
            model(fetched["input_ids"] if step == 1 else fetched["input_ids"][None]).backward()
            hook.commit(step)
    assert same(exported_ids(tmp_path), [IDS[:1], IDS[1:]])
    assert all(row.evidence is None for row in rows(tmp_path))


# ---- tokens chosen by a function


def test_a_function_may_choose_a_view() -> None:
    """The first of two rows a sample, as of (prompt, answer): the rest stays under its own name."""
    both = torch.arange(24).view(2, 2, 6)
    named = name_microbatch({"ids": both}, lambda batch: batch["ids"][:, 0])
    assert named.tokens == "tokens"
    assert list(named.tensors) == ["ids", "tokens"]
    assert named.tensors["ids"] is both
    assert named.tensors["tokens"].data_ptr() == both.data_ptr()
    assert torch.equal(named.tensors["tokens"], both[:, 0])
    flat = torch.arange(24)
    named = name_microbatch({"ids": flat}, lambda batch: batch["ids"].view(-1, 6))
    assert named.tensors["tokens"].shape == (4, 6)
    assert named.tensors["ids"] is flat


def test_a_function_may_make_tokens() -> None:
    named = name_microbatch({"tokens": LABELS, "x": 1}, lambda batch: batch["tokens"] + 1)
    assert named.tokens == "tokens_2"
    assert list(named.tensors) == ["tokens", "tokens_2"]
    assert torch.equal(named.tensors["tokens_2"], LABELS + 1)


@pytest.mark.parametrize(
    "ids", [IDS, IDS.numpy(), LISTS, read_only(IDS.numpy().copy())], ids=["torch", "numpy", "list", "ro"]
)
def test_a_function_that_chooses_what_is_there_adds_nothing(ids: Any) -> None:
    named = name_microbatch({"ids": ids, "labels": LABELS}, lambda batch: batch["ids"])
    assert named.tokens == "ids"
    assert list(named.tensors) == ["ids", "labels"]


def test_a_whole_view_is_the_tensor_itself() -> None:
    assert name_microbatch({"ids": IDS}, lambda batch: batch["ids"][:]).tokens == "ids"
    assert name_microbatch({"ids": IDS}, lambda batch: batch["ids"].detach()).tokens == "ids"
    assert name_microbatch({"ids": IDS.numpy()}, lambda batch: torch.from_numpy(batch["ids"])).tokens == "ids"


@pytest.mark.parametrize("value", ["ids", 3, None, {"ids": IDS}, ["a"]])
def test_a_function_must_give_tokens(value: Any) -> None:
    with pytest.raises(InputError, match=r"tokens: expected a function that gives token ids, found \w+; .*ids"):
        name_microbatch({"ids": IDS}, lambda _: value)


def test_tokens_made_by_a_function_are_exported(tmp_path: Path) -> None:
    model = Toy()
    both = torch.stack([IDS, LABELS], dim=1)
    with attach(model, tmp_path) as hook:
        for fetched in hook.wrap([{"ids": both}], tokens=lambda batch: batch["ids"][:, 0]):
            model(fetched["ids"][:, 0]).backward()
        hook.commit(1)
    (part,) = exported(tmp_path).values()
    assert torch.equal(part.batch["tokens"], IDS)
    assert torch.equal(part.batch["ids"], both)


# ---- include and exclude


FULL = {"input_ids": IDS, "labels": LABELS, "meta": {"a": IDS, "b": [[1], [2, 3]]}, "extra": {"c": LABELS}}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, ["meta"], ["input_ids", "labels", "extra.c"]),
        (None, ["meta.b"], ["input_ids", "labels", "meta.a", "extra.c"]),
        (None, ["*.b"], ["input_ids", "labels", "meta.a", "extra.c"]),
        (None, ["meta.*", "lab*"], ["input_ids", "extra.c"]),
        (["input_ids", "labels"], [], ["input_ids", "labels"]),
        (["labels"], [], ["input_ids", "labels"]),
        ([], [], ["input_ids"]),
        (["meta", "extra"], ["meta.b"], ["input_ids", "meta.a", "extra.c"]),
        (["*.c"], [], ["input_ids", "extra.c"]),
        (None, "meta", ["input_ids", "labels", "extra.c"]),
        ("labels", (), ["input_ids", "labels"]),
    ],
)
def test_patterns(include: Any, exclude: Any, expected: list[str]) -> None:
    assert names(FULL, include=include, exclude=exclude) == expected


def test_patterns_of_plain_microbatches() -> None:
    plain = {"input_ids": IDS, "labels": LABELS, "mask": IDS}
    assert names(plain, exclude=["mask"]) == ["input_ids", "labels"]
    assert names(plain, include=["mask"]) == ["input_ids", "mask"]
    assert names(plain, exclude=["MASK"]) == ["input_ids", "labels", "mask"]


@pytest.mark.parametrize(
    ("tokens", "batch", "exclude"),
    [
        ("input_ids", {"input_ids": IDS}, ["input_*"]),
        ("input_ids", {"input_ids": IDS}, ["*"]),
        ("a.ids", {"a": {"ids": IDS}}, ["a"]),
        (0, (IDS, LABELS), ["0"]),
        (lambda batch: batch["ids"], {"ids": IDS}, ["ids"]),
        (lambda batch: batch["ids"] + 1, {"ids": IDS}, ["tok*"]),
    ],
)
def test_the_tokens_cannot_be_excluded(tokens: Any, batch: Any, exclude: Sequence[str]) -> None:
    with pytest.raises(
        InputError, match=r"exclude: expected patterns that leave the tokens \('.*'\), found .*include=\[\]"
    ):
        name_microbatch(batch, tokens, exclude=exclude)


def test_tokens_of_a_function_are_recorded_whatever_is_included() -> None:
    assert names({"ids": IDS, "labels": LABELS}, tokens=lambda batch: batch["ids"], include=["labels"]) == [
        "labels",
        "ids",
    ]
    assert names({"ids": IDS, "labels": LABELS}, tokens=lambda batch: batch["ids"] + 1, include=[]) == ["tokens"]
    assert names({"ids": IDS}, tokens=lambda batch: batch["ids"][:, 1:], exclude=["ids"]) == ["tokens"]


# ---- a forward's arguments


def found(args: tuple[Any, ...], kwargs: Mapping[str, Any], parameters: Sequence[str] = ()) -> list[str | None]:
    """The names of a forward's tensors."""
    return [name for name, _ in forward_tensors(args, kwargs, tuple(parameters))]


@pytest.mark.parametrize(
    ("args", "kwargs", "parameters", "expected"),
    [
        ((IDS, LABELS), {}, ("input_ids", "labels"), ["input_ids", "labels"]),
        ((IDS, LABELS), {}, ("input_ids",), ["input_ids", None]),
        ((IDS, LABELS), {}, (), [None, None]),
        ((IDS,), {"labels": LABELS}, ("input_ids", "mask"), ["input_ids", "labels"]),
        ((), {"input_ids": IDS, "batch": {"mask": IDS, "pair": (IDS, LABELS)}}, (),
         ["input_ids", "batch.mask", "batch.pair.0", "batch.pair.1"]),
        (({"input_ids": IDS, "labels": LABELS},), {}, ("batch",), ["input_ids", "labels"]),
        (({"input_ids": IDS, "meta": {"a": IDS}}, 3), {"flag": True}, ("batch", "n"), ["input_ids", "meta.a"]),
        ((Batch(IDS, LABELS),), {}, ("batch",), ["ids", "labels"]),
        ((Pair(IDS, LABELS),), {}, (), ["ids", "labels"]),
        (((IDS, LABELS),), {}, ("batch",), ["0", "1"]),
        (([IDS, LABELS],), {}, ("batch",), ["0", "1"]),
        (({"a": IDS}, {"a": LABELS}), {}, ("encoder", "decoder"), ["encoder.a", "decoder.a"]),
        (({"a": IDS}, {"a": LABELS}), {}, (), ["0.a", "1.a"]),
        (({"a": IDS}, LABELS), {}, ("batch", "labels"), ["a", "labels"]),
        ((IDS.numpy(), LISTS), {"x": read_only(np.arange(3))}, ("input_ids", "labels"), ["input_ids", "labels", "x"]),
        ((None, "a", 3, [[1], [2, 3]], [1, None]), {"x": np.zeros(2, np.longdouble)}, (), []),
        ((IDS,), {"sample_index": IDS}, ("input_ids",), ["input_ids"]),
    ],
)  # fmt: skip
def test_names_of_a_forwards_tensors(args: Any, kwargs: Any, parameters: Any, expected: list[str | None]) -> None:
    assert found(args, kwargs, parameters) == expected


def test_a_forwards_tensors_are_the_very_ones() -> None:
    (_, ids), (_, labels) = forward_tensors((IDS,), {"labels": LABELS}, ("input_ids",))
    assert ids is IDS
    assert labels is LABELS


class Free(nn.Module):
    def forward(self, *inputs: Tensor, scale: float = 1.0) -> Tensor:
        return inputs[0] * scale


class Holder(nn.Module):
    """A model of its own, though it has a `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Toy()

    def forward(self, tokens: Tensor, /, mask: Tensor, *rest: Tensor, scale: float = 1.0) -> Tensor:
        return tokens * mask * scale * len(rest)


class Wrapper(nn.Module):
    """As the wrappers of trainers are."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        return self.module(*inputs, **kwargs)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_parameter_names() -> None:
    assert parameter_names(Toy()) == ("input_ids", "labels")
    assert parameter_names(Free()) == ()
    assert parameter_names(Holder()) == ("tokens", "mask")
    assert parameter_names(Wrapper(Wrapper(Toy()))) == ("input_ids", "labels")
    assert parameter_names(Wrapper(Holder())) == ("tokens", "mask")
    assert parameter_names(nn.Module()) == ()
    assert parameter_names(torch.compile(Toy())) == ("input_ids", "labels")  # type: ignore[arg-type]
    assert parameter_names(torch.compile(Wrapper(Toy()))) == ("input_ids", "labels")  # type: ignore[arg-type]
    compiled = Toy()
    compiled.compile()
    assert parameter_names(compiled) == ("input_ids", "labels")


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """Of one process."""
    store = FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_parameter_names_of_ddp() -> None:
    assert parameter_names(DistributedDataParallel(Toy())) == ("input_ids", "labels")
    assert parameter_names(torch.compile(DistributedDataParallel(Toy()))) == ("input_ids", "labels")  # type: ignore[arg-type]
