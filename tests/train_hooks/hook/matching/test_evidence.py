"""How the hook says that a row is known, and which tensors belong to a micro-batch as a whole."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.train_hooks.hook.toy import LENGTH, SLOTS, Toy, attach, exported, microbatch, rows, train_step
from train_hooks.export_format.barriers import barrier_steps
from train_hooks.export_format.errors import ExportStopped, InputError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.reading.summaries import EvidenceShares
from train_hooks.export_format.records import Evidence, Matched, Row, TensorScope
from train_hooks.export_format.upkeep.status import status
from train_hooks.export_format.verify.run import verify


class Anything(nn.Module):
    """A model that takes whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.weight.sum()


def known(row: Row) -> tuple[object, ...]:
    return row.evidence, row.matched, row.relation


def test_rows_that_a_forward_got_say_nothing_but_the_attempts_default(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        for batch in hook.wrap([microbatch(1)]):
            train_step(model, [batch])
            hook.commit(1)
    info = RunReader(tmp_path).attempt(1).info

    assert (info.default_evidence, info.default_tensor_evidence, info.default_matched) == (
        Evidence.FORWARD, Evidence.FORWARD, Matched.WHOLE,
    )  # fmt: skip
    assert [known(row) for row in rows(tmp_path)] == [(None, None, None)] * SLOTS
    assert {tensor.evidence for row in rows(tmp_path) for tensor in row.tensors} == {None}
    expected = EvidenceShares(num_rows=SLOTS, forward=SLOTS, whole=SLOTS)
    assert status(RunReader(tmp_path)).shares == verify(tmp_path).shares == expected
    assert expected.sentence() == "evidence: forward 100%; matched: whole 100%"


def test_rows_that_were_only_counted_say_so(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        batches = list(hook.wrap([microbatch(1), microbatch(2)]))
        hook.consume()
        train_step(model, batches[1:])
        hook.commit(1)

    counted, seen = (Evidence.LOADER, Matched.COUNT, None), (None, None, None)
    assert [known(row) for row in rows(tmp_path)] == [counted] * SLOTS + [seen] * SLOTS
    shares = status(RunReader(tmp_path)).shares
    assert shares == EvidenceShares(num_rows=2 * SLOTS, forward=SLOTS, loader=SLOTS, whole=SLOTS, count=SLOTS)
    assert shares.sentence() == "evidence: forward 50.0%, loader 50.0%; matched: whole 50.0%, count 50.0%"


@pytest.mark.parametrize(
    ("change", "matched", "relation"),
    [
        (lambda ids: ids.clone(), None, None),
        (lambda ids: ids.to(torch.int32), None, "dtype int32"),
        (lambda ids: ids.flatten().clone(), None, "flatten"),
        (lambda ids: ids[:, :-1].clone(), Matched.SLICE, "[:, :-1]"),
        (lambda ids: ids[:, :-1].to(torch.int16), Matched.SLICE, "dtype int16; [:, :-1]"),
    ],
)
def test_what_the_forward_got_in_another_form_is_named(
    tmp_path: Path, change: Any, matched: Matched | None, relation: str | None
) -> None:
    model = Anything()
    with attach(model, tmp_path) as hook:
        for batch in hook.wrap([microbatch(1)]):
            model(change(batch["input_ids"]))
            hook.commit(1)

    assert [known(row) for row in rows(tmp_path)] == [(None, matched, relation)] * SLOTS


def test_a_part_of_tokens_that_were_changed_in_place_is_a_slice(tmp_path: Path) -> None:
    model = Anything()
    with attach(model, tmp_path) as hook:
        for batch in hook.wrap([microbatch(1)]):
            batch["input_ids"][0, 0] = 5
            model(batch["input_ids"][:, :-1])
            hook.commit(1)

    assert [known(row) for row in rows(tmp_path)] == [(None, Matched.SLICE, "[:, :-1]")] * SLOTS
    assert rows(tmp_path)[0].tokens[0] == 5


def test_labels_of_which_the_forward_got_a_part_are_the_loaders(tmp_path: Path) -> None:
    model = Anything()
    with attach(model, tmp_path) as hook:
        for batch in hook.wrap([microbatch(1)]):
            batch["labels"].fill_(-100)
            model(batch["input_ids"], batch["labels"][0, :1])
            hook.commit(1)

    found = {tensor.name: tensor.evidence for tensor in rows(tmp_path)[0].tensors}
    assert found == {"input_ids": None, "labels": Evidence.LOADER}


def test_an_empty_tensor_is_no_slice_of_rows_of_one_token(tmp_path: Path) -> None:
    model = Anything()
    with attach(model, tmp_path, shorter_rows=True) as hook:
        for batch in hook.wrap([{"input_ids": torch.tensor([[3], [4]])}]):
            model(torch.empty(2, 0, dtype=torch.int64), batch["input_ids"])
            hook.commit(1)

    assert [known(row) for row in rows(tmp_path)] == [(None, None, None)] * SLOTS


def test_tokens_of_another_shape_are_not_called_flat(tmp_path: Path) -> None:
    model = Anything()
    with attach(model, tmp_path) as hook:
        for batch in hook.wrap([microbatch(1)]):
            model(batch["input_ids"].reshape(4, 8).clone())
            hook.commit(1)

    assert rows(tmp_path)[0].relation == "shape [4, 8]"


def test_booleans_are_no_token_ids(tmp_path: Path) -> None:
    with attach(Anything(), tmp_path) as hook, pytest.raises(InputError, match=r"found torch\.bool"):
        next(iter(hook.wrap([{"input_ids": torch.ones(2, LENGTH, dtype=torch.bool)}])))


def test_a_tensor_that_the_forward_got_changed_is_known_from_the_forward(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        for batch in hook.wrap([microbatch(1)]):
            batch["labels"].fill_(-100)
            train_step(model, [batch])
            hook.commit(1)
    evidence = {tensor.name: tensor.evidence for tensor in rows(tmp_path)[0].tensors}

    assert evidence == {"input_ids": None, "labels": None}
    assert (exported(tmp_path)[1, 0, 0].batch["labels"] == -100).all()


def batch_with(lengths: list[int], seed: int = 1) -> dict[str, Any]:
    return {**microbatch(seed), "lengths": torch.tensor(lengths, dtype=torch.int32)}


def train(model: nn.Module, hook: Any, batches: list[dict[str, Any]], first_step: int = 1) -> None:
    for step, batch in enumerate(hook.wrap(batches), first_step):
        model(batch["input_ids"])
        hook.commit(step)
    hook.checkpoint_barrier(first_step + len(batches) - 1)


def whole_in(run_dir: Path, attempt: int = 1) -> list[bool]:
    """Of each row that holds `lengths`, whether it is of the micro-batch as a whole."""
    return [t.whole for row in rows(run_dir, attempt) for t in row.tensors if t.name == "lengths"]


def test_cumulative_lengths_are_of_the_micro_batch_however_many_they_are(tmp_path: Path) -> None:
    """Two rows and two lengths: by its shape alone each length would be a number of a row."""
    batches = [batch_with([0, 32]), batch_with([0, 5, 9, 32], 2), batch_with([0, 32], 3)]
    model = Anything()
    with attach(model, tmp_path) as hook:
        train(model, hook, batches)

    assert whole_in(tmp_path) == [True] * 3
    for step, batch in enumerate(batches, 1):
        assert torch.equal(exported(tmp_path)[step, 0, 0].batch["lengths"], batch["lengths"])


def test_what_a_tensor_is_does_not_change_within_a_run(tmp_path: Path) -> None:
    model = Anything()
    hook = attach(model, tmp_path)
    train(model, hook, [batch_with([7, 3])])
    message = r"'lengths': expected an item for each of 2 rows.*=\['lengths'\]"
    with pytest.raises(ExportStopped, match=message):
        train(model, hook, [batch_with([7, 3, 1], 2)], first_step=2)
    with pytest.raises(ExportStopped, match=message):
        hook.close()


def test_a_declaration_decides_and_the_next_attempt_keeps_it(tmp_path: Path) -> None:
    model = Anything()
    with attach(model, tmp_path, microbatch_tensors=["lengths"]) as hook:
        train(model, hook, [batch_with([7, 3])])
        token = hook.state_dict()
    with attach(model, tmp_path, resume=token) as hook:
        assert hook.attempt.tensor_scopes == {
            "lengths": TensorScope.MICROBATCH, "input_ids": TensorScope.ROW, "labels": TensorScope.ROW,
        }  # fmt: skip
        train(model, hook, [batch_with([7, 3], 2)], first_step=2)

    assert whole_in(tmp_path) == whole_in(tmp_path, 2) == [True]


@pytest.mark.parametrize("name", ["microbatch/x", "x:float32", "x:bfloat16", "microbatch/mask:float8_e5m2"])
def test_names_of_the_loader_come_back_whatever_they_are(tmp_path: Path, name: str) -> None:
    """In formats 1 and 2 such a name was taken for another tensor, or another dtype."""
    values = torch.arange(SLOTS * 3, dtype=torch.int32).reshape(SLOTS, 3)
    bits = torch.randn(SLOTS, LENGTH).to(torch.bfloat16)
    model = Anything()
    with attach(model, tmp_path) as hook:
        train(model, hook, [{**microbatch(1), name: values, "mask": bits}])
    batch = exported(tmp_path)[1, 0, 0].batch

    assert set(batch) == {"input_ids", "labels", name, "mask"}
    assert torch.equal(batch[name], values)
    assert batch[name].dtype == torch.int32
    assert batch["mask"].dtype == torch.bfloat16
    assert torch.equal(batch["mask"].view(torch.int16), bits.view(torch.int16))


def test_a_barrier_leaves_a_record_and_what_it_covers_is_final(tmp_path: Path) -> None:
    model = Toy()
    hook = attach(model, tmp_path)
    for step, batch in enumerate(hook.wrap(microbatch(seed) for seed in range(4)), 1):
        train_step(model, [batch])
        hook.commit(step)
        if step in (2, 3):
            hook.checkpoint_barrier(2)
    reader = RunReader(tmp_path).attempt(1)

    assert barrier_steps(OsFileSystem(), reader.directory) == [2]
    assert reader.final_step() == reader.barrier_step() == 2
    assert status(RunReader(tmp_path)).attempts[0].barrier_step == 2
    hook.close()
    assert RunReader(tmp_path).attempt(1).final_step() == 4
    assert verify(tmp_path).findings == ()


def test_a_barrier_record_that_cannot_be_written_stops_the_training(tmp_path: Path) -> None:
    model = Toy()
    hook = attach(model, tmp_path)
    for batch in hook.wrap([microbatch(1)]):
        train_step(model, [batch])
        hook.commit(1)
    path = RunReader(tmp_path).paths.barrier_json(1, 1)
    path.with_name(path.name + ".inprogress").mkdir()
    with pytest.raises(ExportStopped, match="the barrier record of step 1 could not be made durable"):
        hook.checkpoint_barrier(1)
    path.with_name(path.name + ".inprogress").rmdir()
    hook.checkpoint_barrier(1)
    hook.close()
    assert path.exists()
