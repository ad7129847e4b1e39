"""Every forward is accounted for: the rows that it got are the rows of the record, in whatever form and order."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.train_hooks.hook.matching.forwards import Feed, Ids, ids, refused
from tests.train_hooks.hook.matching.test_evidence import known
from tests.train_hooks.hook.toy import (
    SLOTS,
    Toy,
    attach,
    exported,
    exported_ids,
    microbatch,
    microbatches,
    rows,
    same,
    train_step,
)
from train_hooks.export_format.errors import ExportStopped, Mismatch
from train_hooks.export_format.records import Evidence, Matched
from train_hooks.hook.export.exporter import ExporterOptions

ROWS: dict[str, Feed] = {
    "a row is left out": lambda model, b: model(b[0][ids][1:]),
    "rows are chosen": lambda model, b: model(b[0][ids][[3, 0]]),
    "two are joined": lambda model, b: model(torch.cat([b[0][ids], b[1][ids]])),
    "two are joined in turn": lambda model, b: model(torch.stack([b[0][ids], b[1][ids]], 1).flatten(0, 1)),
    "one is split": lambda model, b: [model(part) for part in b[0][ids].split(1)],
    "chunks of both": lambda model, b: [model(torch.cat([x[:2], y[2:]])) for x, y in ((b[0][ids], b[1][ids]),)],
}


@pytest.mark.parametrize("how", ROWS)
def test_rows_of_micro_batches_are_recorded_as_the_forward_got_them(tmp_path: Path, how: str) -> None:
    model = Ids()
    given = [microbatch(seed, slots=4, documents=True) for seed in range(2)]
    of_row = {
        tuple(row.tolist()): (labels, documents, int(sample))
        for batch in given
        for row, labels, documents, sample in zip(
            batch[ids], batch["labels"], batch["segments"], batch["sample_index"], strict=True
        )
    }
    with attach(model, tmp_path) as hook:
        ROWS[how](model, list(hook.wrap(given)))
        hook.commit(1)

    found = exported(tmp_path)
    assert same([part.batch[ids] for part in found.values()], model.seen)
    for part in found.values():
        for slot, row in enumerate(part.batch[ids]):
            labels, documents, sample = of_row[tuple(row.tolist())]
            assert torch.equal(part.batch["labels"][slot], labels)
            assert (part.segments or ())[slot] == tuple(documents)
            assert (part.sample_index or ())[slot] == sample
    assert {known(row)[2] for row in rows(tmp_path)} == {"rows"}
    assert {tensor.evidence for tensor in rows(tmp_path)[0].tensors if tensor.name == "labels"} == {Evidence.LOADER}


def test_rows_over_several_steps(tmp_path: Path) -> None:
    """A micro-batch that is dealt out over steps; rows that were trained on are not to be had again."""
    model = Ids()
    hook = attach(model, tmp_path)
    (batch,) = hook.wrap([microbatch(1, slots=4)])
    for step in (1, 2):
        model(batch[ids][2 * step - 2 : 2 * step])
        hook.commit(step)
    hook.checkpoint_barrier(2)
    model(batch[ids][:2])
    with pytest.raises(Mismatch, match="step 3: 1 of 1 forwards"):
        hook.commit(3)
    hook.close()
    assert same(exported_ids(tmp_path), model.seen[:2])


def test_two_micro_batches_in_one_call_are_both_consumed(tmp_path: Path) -> None:
    model = Ids()
    with attach(model, tmp_path) as hook:
        chosen, rejected = (iter(hook.wrap(microbatches(3, first))) for first in (0, 10))
        for step in (1, 2):
            one, other = next(chosen), next(rejected)
            model(one[ids], other[ids])
            hook.commit(step)
    assert same(exported_ids(tmp_path), [microbatch(seed)[ids] for seed in (0, 10, 1, 11)])


def test_columns_that_were_trimmed(tmp_path: Path) -> None:
    def trimmed(model: nn.Module, batches: list[dict[str, Any]]) -> None:
        model(batches[0][ids][:, :9])

    refused(tmp_path / "strict", trimmed, "got the first 9 of 16 tokens of its rows; with shorter_rows=True")
    model = Ids()
    with attach(model, tmp_path / "shorter", shorter_rows=True) as hook:
        (batch,) = hook.wrap([microbatch(1, documents=True)])
        model(batch[ids][:, :12].clone(), batch["labels"][:, :12])
        hook.commit(1)
    (part,) = exported(tmp_path / "shorter").values()
    assert torch.equal(part.batch[ids], model.seen[0])
    assert torch.equal(part.batch["labels"], batch["labels"][:, :12])
    assert [[(s.start, s.length) for s in of_row] for of_row in part.segments or ()] == [[(0, 10), (10, 2)]] * SLOTS
    assert [known(row) for row in rows(tmp_path / "shorter")] == [(None, None, "[:, :12]")] * SLOTS


@pytest.mark.parametrize(
    ("columns", "relation"), [(slice(0, 8), "[:, 0:8]"), ([0, 1, 2, 3, 12, 13, 14, 15], "[:, 0:4+12:16]")]
)
def test_a_part_of_the_columns_that_was_declared(tmp_path: Path, columns: Any, relation: str) -> None:
    model = Ids()
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(2), columns=columns), 1):
            model(batch[ids][:, columns].clone())
            hook.commit(step)
    assert same(exported_ids(tmp_path), [microbatch(seed)[ids] for seed in (0, 1)])
    assert [known(row) for row in rows(tmp_path)] == [(None, Matched.SLICE, relation)] * 4


@pytest.mark.parametrize("first", ["forward", "consume"])
def test_what_is_counted_is_compared_where_a_forward_is_seen(tmp_path: Path, first: str) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        hook.listen(model, counting=True)
        for step, batch in enumerate(hook.wrap(microbatches(3)), 1):
            if first == "consume":
                hook.consume()
            x = batch[ids].clone() if step < 3 else batch[ids] // 2
            model(x[:, :-1] if step == 2 else x, batch["labels"] if step == 1 else None)
            if first == "forward":
                hook.consume()
            hook.commit(step)
    assert same(exported_ids(tmp_path), [microbatch(seed)[ids] for seed in range(3)])
    found = [known(row) for row in rows(tmp_path)][::SLOTS]
    assert found == [(None, None, None), (None, Matched.SLICE, "[:, :-1]"), (Evidence.LOADER, Matched.COUNT, None)]
    labels = [tensor.evidence for row in rows(tmp_path)[::SLOTS] for tensor in row.tensors if tensor.name == "labels"]
    assert labels == [None, Evidence.LOADER, Evidence.LOADER]


def test_more_fetched_ahead_than_is_configured(tmp_path: Path) -> None:
    model = Toy()
    hook = attach(model, tmp_path, options=ExporterOptions(max_fetched_bytes=4096))
    batches = list(hook.wrap(microbatches(20)))
    train_step(model, batches[-1:])
    hook.commit(1)
    more = list(hook.wrap(microbatches(20, 100)))
    train_step(model, more[:1])
    with pytest.raises(Mismatch, match=r"fetched too long before; more than 4096 bytes .*max_fetched_bytes="):
        hook.commit(2)
    hook.close()
    assert same(exported_ids(tmp_path), model.seen[:1])


def test_data_that_is_skipped_at_a_resume_is_not_held(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path, options=ExporterOptions(max_fetched_bytes=4096)) as hook:
        for number, batch in enumerate(hook.wrap(microbatches(300)), 1):
            assert hook._consumption.num_pending < 20
            if number == 300:
                train_step(model, [batch])
                hook.commit(1)
    assert same(exported_ids(tmp_path), model.seen)


def test_a_shuffle_buffer_behind_the_loader(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        buffer: list[dict[str, Any]] = []
        step = 0
        for batch in hook.wrap(microbatches(12)):
            buffer.append(batch)
            if len(buffer) == 4:
                step += 1
                taken = buffer.pop(step % 3)
                model(taken[ids].clone() if step % 2 else taken[ids], taken["labels"])
                hook.commit(step)
    assert same(exported_ids(tmp_path), model.seen)


def test_what_was_left_out_is_not_counted(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        batches = list(hook.wrap(microbatches(4)))
        train_step(model, batches[1:2])
        hook.commit(1)
        hook.consume(2)
        hook.commit(2)
        with pytest.raises(ExportStopped, match="expected 1 fetched micro-batches, found 0"):
            hook.consume()
    assert same(exported_ids(tmp_path), [batch[ids] for batch in batches[1:]])


def test_small_integers_beside_the_tokens_are_no_rows(tmp_path: Path) -> None:
    model = Ids()
    with attach(model, tmp_path, shorter_rows=True) as hook:
        batches = list(hook.wrap(microbatches(6)))
        for step, batch in enumerate(batches[1::2], 1):
            first = batches[0][ids][:, :1].clone()
            model(batch[ids], first) if step < 3 else model(first, batch[ids])
            hook.commit(step)
    assert same(exported_ids(tmp_path), [batch[ids] for batch in batches[1::2]])


@pytest.mark.parametrize("slow", [True, False])
def test_one_tensor_fetched_several_times_in_a_step(tmp_path: Path, slow: bool) -> None:
    model = Toy()
    batch = microbatch(1)
    with attach(model, tmp_path) as hook:
        loader = iter(hook.wrap([batch] * 4))
        for step in (1, 2):
            for fetched in (next(loader), next(loader)):
                model(fetched[ids], fetched["labels"].clone() if slow else fetched["labels"])
            hook.commit(step)
    assert same(exported_ids(tmp_path), [batch[ids]] * 4)


def test_a_part_of_what_was_fed_is_no_repetition(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path, shorter_rows=True) as hook:
        for step, (batch, first) in enumerate(zip(hook.wrap(microbatches(2)), (8, 16), strict=True), 1):
            model(batch[ids][:, :first])
            model(batch[ids][:, : 24 - first])
            hook.commit(step)
    assert same(exported_ids(tmp_path), model.seen)


def test_a_packed_row_of_one_dimension_without_its_last_token(tmp_path: Path) -> None:
    model = Ids()
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap({ids: microbatch(seed)[ids][0]} for seed in range(2)), 1):
            model(batch[ids][:-1])
            hook.commit(step)
    assert same(exported_ids(tmp_path), [microbatch(seed)[ids][:1] for seed in range(2)])
    assert {known(row)[1] for row in rows(tmp_path)} == {Matched.SLICE}
