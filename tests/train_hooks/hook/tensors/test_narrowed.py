"""Copies in half the bytes: what comes out of them is int64 again, and exactly what the forward got."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.train_hooks.hook.toy import LENGTH, SLOTS, VOCAB, Toy, attach, exported_ids, microbatch, same
from train_hooks.export_format.errors import ExportStopped
from train_hooks.hook.matching.consumed import ConsumedRows
from train_hooks.hook.matching.match_tokens import RowMatch
from train_hooks.hook.tensors.batches import name_microbatch
from train_hooks.hook.tensors.host_copies import BufferPool
from train_hooks.hook.tensors.scopes import TensorScopes
from train_hooks.hook.tensors.snapshots import Snapshot


def snapshot(batch: dict[str, Tensor], pool: BufferPool) -> Snapshot:
    return Snapshot(name_microbatch(batch, "input_ids"), pool)


def consumed(snapshot: Snapshot, pool: BufferPool | None = None) -> ConsumedRows:
    return ConsumedRows(RowMatch(snapshot), pool or BufferPool(), TensorScopes({}), threading.RLock())


def test_half_the_bytes_and_the_same_numbers() -> None:
    batch = microbatch(1)
    batch["labels"][:, -3:] = -100
    taken = snapshot(batch, BufferPool())
    assert [copy.buffer.dtype for copy in taken.copies.values()] == [torch.int32] * 2
    assert taken.size_bytes < sum(tensor.nbytes for tensor in batch.values()) // 2 + 1024
    (found,) = consumed(taken).resolve()
    assert found.tokens.dtype == found.tensors["labels"].dtype == np.int64
    assert np.array_equal(found.tokens, batch["input_ids"])
    assert np.array_equal(found.tensors["labels"], batch["labels"])


@pytest.mark.parametrize("wide", [2**31, -(2**31) - 1, 2**32 + 5, -(2**63)])
@pytest.mark.parametrize("name", ["input_ids", "labels"])
def test_a_number_that_needs_more_is_kept_whole(name: str, wide: int) -> None:
    batch, pool = microbatch(1), BufferPool()
    batch[name][1, 7] = wide
    for _ in range(2):  # the second one gets the buffers of the first
        taken = snapshot(batch, pool)
        (found,) = consumed(taken).resolve()
        assert np.array_equal(found.tokens, batch["input_ids"])
        assert np.array_equal(found.tensors["labels"], batch["labels"])
        assert found.release is not None
        found.release()


def test_a_token_beyond_int32_stops_the_export(tmp_path: Path) -> None:
    class Blind(torch.nn.Module):
        def forward(self, input_ids: Tensor) -> None:
            pass

    model, batch = Blind(), {"input_ids": microbatch(1)["input_ids"]}
    batch["input_ids"][0, 3] += 1 << 32  # in the vocabulary, were it cut
    hook = attach(model, tmp_path)
    for fetched in hook.wrap([batch]):
        model(**fetched)
    hook.commit(1)
    with pytest.raises(ExportStopped, match=rf"expected token ids in \[0, {VOCAB}\), found \d+ to 42949"):
        hook.close()


@pytest.mark.parametrize("kind", ["int64", "int32", "views of one storage"])
@pytest.mark.parametrize("column", [0, LENGTH // 2])
def test_edited_behind_torch_between_fetch_and_forward(kind: str, column: int, tmp_path: Path) -> None:
    model = Toy()
    whole = torch.randint(0, VOCAB - 1, (SLOTS, LENGTH + 1), dtype=torch.int32 if kind == "int32" else torch.int64)
    batch = {"input_ids": whole[:, :-1], "labels": whole[:, 1:]}
    if kind != "views of one storage":
        batch = {name: view.contiguous() for name, view in batch.items()}
    with attach(model, tmp_path) as hook:
        (fetched,) = hook.wrap([batch])
        fetched["input_ids"].numpy()[1, column] += 1
        model(fetched["input_ids"], fetched["labels"].long()).backward()
        hook.commit(1)
    assert same(exported_ids(tmp_path), [batch["input_ids"]])
    assert same(exported_ids(tmp_path, "labels"), [batch["labels"]])


def test_one_of_several_views_edited(tmp_path: Path) -> None:
    """Their copy is one buffer: copying one of them again must leave the other one right."""
    model = Toy()
    whole = torch.randint(0, VOCAB, (SLOTS, LENGTH + 1))
    with attach(model, tmp_path) as hook:
        (fetched,) = hook.wrap([{"input_ids": whole[:, :-1], "labels": whole[:, 1:]}])
        fetched["labels"][:, -2:] = 1
        model(**fetched).backward()
        expected = whole.clone()
        whole.zero_()
        hook.commit(1)
    assert same(exported_ids(tmp_path), [expected[:, :-1]])
    assert same(exported_ids(tmp_path, "labels"), [expected[:, 1:]])
