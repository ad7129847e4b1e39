"""What a micro-batch may hold beside plain tensors: each is recorded as it is, or refused in words."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from tests.train_hooks.hook.toy import LENGTH, SLOTS, Toy, attach, exported, microbatch
from train_hooks.export_format.errors import InputError
from train_hooks.hook.tensors.batches import forward_tensors, name_microbatch, readable_tensors

IDS = microbatch(1)["input_ids"]
LABELS = microbatch(1)["labels"]


def names(batch: Any, **options: Any) -> list[str]:
    """The names of what is recorded."""
    return list(name_microbatch(batch, options.pop("tokens", "input_ids"), **options).tensors)


def of(value: Any) -> Tensor | None:
    """What is recorded of a further item of a micro-batch."""
    return name_microbatch({"input_ids": IDS, "x": value}, "input_ids").tensors.get("x")


# ---- numpy


def read_only(array: Any) -> Any:
    """The same array, which nobody may write to."""
    array.flags.writeable = False
    return array


ARRAYS = {
    "writeable": np.arange(6).reshape(2, 3),
    "read-only": read_only(np.arange(6).reshape(2, 3)),
    "big-endian": np.arange(6, dtype=">i4").reshape(2, 3),
    "big-endian floats": read_only(np.linspace(0, 1, 6).astype(">f8")),
    "uint16": np.arange(6, dtype=np.uint16),
    "uint32": np.arange(6, dtype=np.uint32),
    "uint64": np.arange(6, dtype=np.uint64),
    "ulonglong": np.arange(6, dtype=np.ulonglong),
    "longlong": np.arange(6, dtype=np.longlong),
    "float16": np.arange(6, dtype=np.float16),
    "complex64": np.arange(6, dtype=np.complex64),
    "complex128": read_only(np.arange(6, dtype=np.complex128)),
    "bool": read_only(np.array([True, False])),
    "int8": np.arange(6, dtype=np.int8),
    "backwards": np.arange(6)[::-1],
    "a field of records": np.zeros(3, dtype=[("a", "i1"), ("b", "<i4")])["b"],
    "transposed": np.arange(6).reshape(2, 3).T,
    "broadcast": np.broadcast_to(np.arange(3), (2, 3)),
    "scalar": np.array(5),
    "empty": np.zeros((2, 0), np.float32),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_of_numbers_are_recorded(name: str) -> None:
    """Read-only arrays, as of `np.frombuffer` and memory maps, were left out without a word."""
    array = ARRAYS[name]
    found = of(array)
    assert found is not None
    assert found.shape == array.shape
    assert found.numpy().dtype == array.dtype.newbyteorder("=")
    assert found.numpy().tobytes() == array.astype(array.dtype.newbyteorder("=")).tobytes()
    assert not array.size or (found.data_ptr() == array.ctypes.data) == (name in _SHARED)


_SHARED = (
    "writeable", "uint16", "uint32", "uint64", "ulonglong", "longlong", "float16", "complex64", "int8", "transposed",
    "scalar",
)  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        np.array(["a", "b"]), np.array([b"a"]), np.array([{}, None], dtype=object), np.zeros(2, "V3"),
        np.array(["2026-01-01"], "datetime64[D]"), np.array([3], "timedelta64[s]"), np.int64(3), np.float32(1.0),
        3, 2.5, True, None, "a", b"a", 1j, [], (), [[], []], ["a", "b"], [["a"], ["b", "c"]], [b"a"], [None, None],
        [("a", 1), ("b", 2)], {}, ["a", None], range(3), IDS.shape,
    ],
)  # fmt: skip
def test_what_is_no_tensor_is_left_out(value: Any) -> None:
    assert of(value) is None
    assert names({"input_ids": IDS, "x": value}) == ["input_ids"]


@pytest.mark.parametrize("dtype", [np.longdouble, np.clongdouble])
def test_numbers_that_torch_cannot_hold(dtype: Any) -> None:
    array = np.zeros(2, dtype)
    if array.dtype.itemsize <= np.zeros(2, np.result_type(np.float64, dtype(0) * 0)).dtype.itemsize // 2:
        pytest.skip("a long double is a double here")
    with pytest.raises(InputError, match=r"'x': .*longdouble.*float64.*exclude=\['x'\]"):
        of(array)


def test_arrays_are_exported(tmp_path: Path) -> None:
    model = Toy()
    batch = {
        "input_ids": read_only(IDS.numpy().astype(">i4")),
        "mask": read_only(np.arange(SLOTS * LENGTH, dtype=np.uint16).reshape(SLOTS, LENGTH)),
        "weights": [[0.5, 1.5]] * SLOTS,
        "texts": ["a", "b"],
    }
    with attach(model, tmp_path) as hook:
        for fetched in hook.wrap([batch]):
            assert fetched is batch
            model(torch.from_numpy(fetched["input_ids"].astype(np.int64))).backward()
        hook.commit(1)
    (part,) = exported(tmp_path).values()
    assert list(part.batch) == ["input_ids", "mask", "weights"]
    assert torch.equal(part.batch["input_ids"], IDS.int())
    assert part.batch["mask"].numpy().tobytes() == batch["mask"].tobytes()
    assert torch.equal(part.batch["weights"], torch.tensor(batch["weights"], dtype=torch.float64))


# ---- lists


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1, 2, 3], torch.int64),
        ((1, 2), torch.int64),
        ([[1, 2], [3, 4]], torch.int64),
        ([(1, 2), (3, 4)], torch.int64),
        ([[[1], [2]], [[3], [4]]], torch.int64),
        ([0.5, 1.5], torch.float64),
        ([1, 2.5], torch.float64),
        ([True, False], torch.bool),
        ([[True, False], [False, False]], torch.bool),
        ([True, 2], torch.int64),
        ([1j, 2], torch.complex128),
        ([np.int8(1), np.int8(2)], torch.int8),
        ([np.float32(1), np.float32(2)], torch.float32),
        ([np.bool_(True)], torch.bool),
        ([1 << 63], torch.uint64),
    ],
)
def test_lists_of_numbers_are_recorded(value: Any, dtype: torch.dtype) -> None:
    found = of(value)
    assert found is not None
    assert found.dtype is dtype
    assert found.tolist() == np.asarray(value).tolist()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            [[1, 2], [3]],
            r"'x': expected rows of one length, found lists of lengths 1 and 2 beside one another; pad them",
        ),
        ([[[1], [2]], [[3], [4, 5]]], r"lengths 1 and 2 beside one another"),
        ([[1], []], "lengths 0 and 1 beside one another"),
        ([[[1]], [[2], [3]], [[4], [5], [6]]], "lengths 1, 2 and 3 beside one another"),
        ([1, [2, 3]], "found a number beside a list of numbers; pad them"),
        ([1, None], "found None among numbers"),
        ([[1, 2], [3, None]], "found None among numbers"),
        ([[1, 2], None], "found None among numbers"),
        ([1 << 64], "found integers beyond 64 bits"),
        ([1 << 63, -1], "found integers beyond 64 bits"),
        ([np.longdouble(1)], "longdouble"),
    ],
)
def test_lists_that_are_no_tensor_are_refused(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"{message}.*or leave it out: hook\.wrap\(…, exclude=\['x'\]\)"):
        of(value)


def test_ragged_token_lists_cannot_be_left_out() -> None:
    with pytest.raises(InputError, match=r"'input_ids': .*lengths 1 and 2 beside one another; pad them.*$") as caught:
        name_microbatch({"input_ids": [[1, 2], [3]]}, "input_ids")
    assert "exclude" not in str(caught.value)


class Pair(NamedTuple):
    ids: Any
    labels: Any


@dataclass
class Batch:
    ids: Any
    labels: Any


LISTS = IDS.tolist()


@pytest.mark.parametrize(
    ("batch", "tokens", "expected"),
    [
        ((3, IDS), 1, ["1"]),
        (("web", IDS, None), 1, ["1"]),
        (["web", LISTS, LISTS], 1, ["1", "2"]),
        ((LISTS, LISTS), 0, ["0", "1"]),
        ((LISTS, LISTS), "1", ["0", "1"]),
        ((LISTS, LISTS), lambda batch: batch[1], ["0", "1"]),
        (LISTS, "input_ids", ["input_ids"]),
        (IDS.numpy(), "input_ids", ["input_ids"]),
        (Pair(LISTS, [1, 2]), 0, ["ids", "labels"]),
        (Batch(LISTS, LABELS.numpy()), "ids", ["ids", "labels"]),
        ({"pair": (IDS, [1, 2], 3), "input_ids": IDS}, "input_ids", ["pair.0", "pair.1", "input_ids"]),
        ({"input_ids": IDS, "deep": [{"a": [1, 2]}, {"a": LABELS}]}, "input_ids", ["input_ids", "deep.0.a", "deep.1.a"]),
        ({"input_ids": IDS, "both": [[1, 2], LABELS]}, "input_ids", ["input_ids", "both.0", "both.1"]),
        ({"input_ids": IDS, "named": [("web", [1, 2])]}, "input_ids", ["input_ids", "named.0.1"]),
        ({"input_ids": IDS, "arrays": [np.arange(2), np.arange(3)]}, "input_ids", ["input_ids", "arrays.0", "arrays.1"]),
        ({"input_ids": IDS, "sample_index": [1, 2], "segments": [[], []]}, "input_ids", ["input_ids"]),
    ],
)  # fmt: skip
def test_structure_is_walked_and_numbers_are_not(batch: Any, tokens: Any, expected: list[str]) -> None:
    named = name_microbatch(batch, tokens)
    assert list(named.tensors) == expected
    assert torch.equal(named.tensors[named.tokens], IDS)


def test_a_list_in_itself() -> None:
    endless: list[Any] = [1]
    endless.append(endless)
    assert of(endless) is None


@pytest.mark.parametrize("batch", [{"a": {"b": IDS}, "a.b": LABELS}, {1: IDS, "1": LABELS}])
def test_two_tensors_of_one_name_are_refused(batch: Any) -> None:
    """The second took the place of the first."""
    with pytest.raises(InputError, match=r"expected one tensor of each name, found two at '(a\.b|1)'"):
        name_microbatch({"input_ids": IDS, **batch}, "input_ids")


@pytest.mark.parametrize("tokens", [2, 7, -3])
def test_an_index_beyond_the_microbatch(tokens: int) -> None:
    """7 was taken for 1."""
    with pytest.raises(InputError, match=rf"tokens={tokens}: expected an index of a micro-batch of 2 items"):
        name_microbatch((LABELS, IDS), tokens)
    with pytest.raises(InputError, match=f"tokens={tokens}: expected an index"):
        name_microbatch(Pair(LABELS, IDS), tokens)


# ---- tensors whose bytes cannot be looked at


def nested(layout: torch.layout) -> Tensor:
    """Rows of 3 and 2 numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.arange(3), torch.arange(2)], layout=layout)


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.rand(2, 3), 0.1, 0, torch.quint8)


def fake() -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(2, 3)


UNREADABLE: dict[str, tuple[Callable[[], Tensor], str]] = {
    "nested strided": (lambda: nested(torch.strided), r"a nested tensor.*to_padded_tensor"),
    "nested jagged": (lambda: nested(torch.jagged), r"a nested tensor.*to_padded_tensor"),
    "quantized": (quantized, r"a quantized tensor.*dequantize"),
    "meta": (lambda: torch.zeros(2, 3, device="meta"), "a meta tensor, which has no values"),
    "fake": (fake, "a FakeTensor"),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("inside", [False, True])
def test_tensors_without_bytes_are_refused(name: str, inside: bool) -> None:
    """Each ended in an error of torch's, or in an internal assert of it."""
    make, message = UNREADABLE[name]
    value: Any = {"y": make()} if inside else make()
    path = r"x\.y" if inside else "x"
    with pytest.raises(InputError, match=rf"'{path}': .*{message}.*exclude=\['{path}'\]"):
        of(value)
    assert names({"input_ids": IDS, "x": value}, exclude=["x"]) == ["input_ids"]
    assert names({"input_ids": IDS, "x": value}, include=["input_ids"]) == ["input_ids"]
    with pytest.raises(InputError, match=rf"'input_ids': .*{message}"):
        name_microbatch({"input_ids": make()}, "input_ids")
    assert readable_tensors({"a": value, "b": IDS}) == [IDS]


SPARSE: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": lambda dense: dense.to_sparse_coo(),  # type: ignore[no-untyped-call]
    "csr": lambda dense: dense.to_sparse_csr(),
    "csc": lambda dense: dense.to_sparse_csc(),
    "bsr": lambda dense: dense.to_sparse_bsr((1, 2)),
    "mkldnn": lambda dense: dense.to_mkldnn(),
}


@pytest.mark.parametrize("layout", SPARSE)
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_sparse_tensors_are_exported_dense(layout: str, tmp_path: Path) -> None:
    """Fetching one ended in an error of torch's: it has no data pointer."""
    model = Toy()
    dense = torch.rand(SLOTS, LENGTH) * (torch.arange(LENGTH) % 3 == 0)
    batch = {**microbatch(1), "x": SPARSE[layout](dense)}
    with attach(model, tmp_path) as hook:
        for fetched in hook.wrap([batch]):
            assert fetched is batch
            model(fetched["input_ids"], fetched["labels"]).backward()
        hook.commit(1)
    (part,) = exported(tmp_path).values()
    assert torch.equal(part.batch["x"], dense)
    assert [found.layout for found in readable_tensors([batch["x"]])] == [torch.strided]


class Marked(Tensor):
    """A subclass whose bytes are as plain as a tensor's."""


def test_plain_subclasses_are_what_they_hold(tmp_path: Path) -> None:
    """A forward that got one was said to have got something else."""
    model = Toy()
    batch = {"input_ids": IDS.clone().as_subclass(Marked), "weight": nn.Parameter(torch.rand(SLOTS))}
    with attach(model, tmp_path) as hook:
        for fetched in hook.wrap([batch]):
            model(fetched["input_ids"]).as_subclass(Tensor).backward()
        hook.commit(1)
    (part,) = exported(tmp_path).values()
    assert torch.equal(part.batch["input_ids"], IDS)
    assert torch.equal(part.batch["weight"], batch["weight"].detach())


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """Of one process."""
    store = FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,), mesh_dim_names=("tp",))
    finally:
        torch.distributed.destroy_process_group()


def test_distributed_tensors(mesh: Any) -> None:
    replicated = distribute_tensor(IDS, mesh, [Replicate()])
    named = name_microbatch({"input_ids": replicated}, "input_ids")
    assert type(named.tensors["input_ids"]) is Tensor
    assert torch.equal(named.tensors["input_ids"], IDS)
    assert named.tensors["input_ids"].data_ptr() == replicated.to_local().data_ptr()
    sharded = distribute_tensor(IDS, mesh, [Shard(0)])
    with pytest.raises(InputError, match=r"'x': .*a DTensor that is not replicated \(.*\).*full_tensor.*exclude="):
        of(sharded)
    assert name_microbatch({"ids": replicated}, lambda batch: batch["ids"]).tokens == "ids"
    found = forward_tensors((sharded,), {"labels": replicated}, ("input_ids",))
    assert [name for name, _ in found] == ["input_ids", "labels"]
    assert all(type(tensor) is Tensor and torch.equal(tensor, IDS) for _, tensor in found)
    assert not any(isinstance(tensor, DTensor) for tensor in readable_tensors([sharded, replicated]))


def test_a_forward_under_vmap_is_looked_at() -> None:
    """The data pointer of what it gets is an error of torch's."""
    seen: list[Tensor] = []

    def forward(row: Tensor) -> Tensor:
        seen.extend(readable_tensors([row]))
        return row * 2.0

    torch.func.vmap(torch.func.grad(lambda row: forward(row).sum()))(torch.rand(2, 3))
    assert [list(tensor.shape) for tensor in seen] == [[2, 3]]
    assert seen[0].data_ptr()
