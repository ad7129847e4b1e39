"""Every forward is accounted for: what it got is what the record has, or the step is refused."""

import contextlib
import gc
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.train_hooks.hook.matching.test_evidence import Anything, known
from tests.train_hooks.hook.toy import (
    LENGTH,
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
from train_hooks import ExportHook
from train_hooks.export_format.errors import ExportStopped, InputError, Mismatch
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Evidence, Matched, StepStatus
from train_hooks.hook.export.exporter import ExporterOptions, StagedMicrobatch
from train_hooks.hook.tensors.snapshots import equal_bits

Feed = Callable[[nn.Module, list[dict[str, Any]]], Any]


class Ids(nn.Module):
    """Takes any number of tensors, and keeps the first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        self.seen.append((args or tuple(kwargs.values()))[0].clone())
        return self.weight.sum()


def refused(run_dir: Path, feed: Feed, match: str, *, num: int = 1, **options: Any) -> None:
    """The step of this forward is refused, in these words, and not acknowledged."""
    model = Ids()
    hook = attach(model, run_dir, **options)
    feed(model, list(hook.wrap(microbatch(seed, slots=4) for seed in range(num))))
    with pytest.raises(Mismatch, match=match):
        hook.commit(1)
    with pytest.raises(Mismatch):
        hook.commit(1)
    hook.close()
    assert exported_ids(run_dir) == []


ids = "input_ids"
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


def test_forwards_that_trained_nothing_are_discarded(tmp_path: Path) -> None:
    """A loss that is not a number; and memory that ran out, after which halves are fed."""
    model = Toy()
    with attach(model, tmp_path) as hook:
        batches = list(hook.wrap(microbatches(4)))
        train_step(model, batches[:1])
        hook.discard()
        train_step(model, batches[1:2])
        hook.commit(1)
        model(**batches[2])
        hook.discard()
        for half in (slice(1), slice(1, 2)):
            model(**{name: value[half] for name, value in batches[2].items()})
        hook.commit(2)
        model(batches[3][ids][:1])
        hook.discard()
        train_step(model, batches[3:])
        hook.commit(3)
    assert same(exported_ids(tmp_path), [model.seen[1], *model.seen[3:5], model.seen[6]])


def test_memory_that_ran_out_without_a_word(tmp_path: Path) -> None:
    """The failed forward was recorded; the halves are what it got already."""
    model = Toy()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap(microbatches(1))
        model(**batch)
        for half in (slice(1), slice(1, 2)):
            model(batch[ids][half].clone()).backward()
        hook.commit(1)
    assert same(exported_ids(tmp_path), model.seen[:1])


def step_statuses(run_dir: Path) -> list[str]:
    return [str(part.status.value) for part in exported(run_dir).values()]


def test_an_update_that_was_left_out_is_known(tmp_path: Path) -> None:
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters())
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(5)), 1):
            train_step(model, [batch])
            if step in (2, 4):
                optimizer.step()
            said = pytest.warns(UserWarning, match="step 1 is recorded as skipped_update: the optimizer made no step")
            with said if step == 1 else contextlib.nullcontext():
                hook.commit(step, status=StepStatus.APPLIED if step == 5 else None)
    assert step_statuses(tmp_path) == ["skipped_update", "applied", "skipped_update", "applied", "applied"]


def test_overflows_of_a_grad_scaler(tmp_path: Path) -> None:
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(4)), 1):
            loss = model(**batch) * (float("inf") if step in (1, 3) else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            with pytest.warns(UserWarning, match="skipped_update") if step == 1 else contextlib.nullcontext():
                hook.commit(step)
    assert step_statuses(tmp_path) == ["skipped_update", "applied", "skipped_update", "applied"]


def test_an_optimizer_of_another_model_says_nothing(tmp_path: Path) -> None:
    model, other = Toy(), Toy()
    optimizer = torch.optim.SGD(other.parameters())
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(2)), 1):
            train_step(model, [batch])
            if step == 1:
                optimizer.step()
            hook.commit(step)
    assert step_statuses(tmp_path) == ["applied"] * 2


def test_training_in_evaluation_mode_is_recorded(tmp_path: Path) -> None:
    """As where dropout is switched off; what it gets beside fetched micro-batches is evaluation."""
    model = Toy().eval()
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(2)), 1):
            model(**microbatch(77))
            train_step(model, [batch])
            hook.commit(step)
    assert same(exported_ids(tmp_path), model.seen[1::2])


def test_a_forward_without_integers_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, lambda model, _: model(torch.zeros(2, 3)), "got no tensor of integers", num=1)


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


def test_a_mismatch_becomes_a_gap(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path, on_mismatch="gap") as hook:
        for step, batch in enumerate(hook.wrap(microbatches(3)), 1):
            train_step(model, [batch])
            if step == 2:
                model(batch[ids] + 1)
                with pytest.warns(UserWarning, match="written as a gap, without its rows: step 2: 1 of 2 forwards"):
                    hook.commit(2)
            else:
                hook.commit(step)
    assert [row.address.global_step for row in rows(tmp_path)] == [1, 1, 3, 3]
    reader = RunReader(tmp_path).attempt(1)
    gaps = [record for _, record in reader.step_records() if record.kind == "gap"]
    assert [(gap.global_step, gap.values) for gap in gaps] == [(2, {"num_rows": SLOTS})]
    with pytest.raises(InputError, match="on_mismatch: expected 'stop' or 'gap'"):
        attach(model, tmp_path / "other", on_mismatch="skip")


def test_forwards_that_call_no_hooks(tmp_path: Path) -> None:
    """As a replayed CUDA graph does: the inputs are filled anew each time."""
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters())
    optimizer.step()
    static = torch.zeros(SLOTS, LENGTH, dtype=torch.int64)
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(3)), 1):
            static.copy_(batch[ids])
            hook.forwarded(static)
            hook.commit(step)
    assert same(exported_ids(tmp_path), [microbatch(seed)[ids] for seed in range(3)])
    assert step_statuses(tmp_path) == ["applied"] * 3


def test_a_stopped_step_is_final_also_for_the_barrier(tmp_path: Path) -> None:
    model = Toy()
    hook: ExportHook = attach(model, tmp_path)
    batches = list(hook.wrap(microbatches(2)))
    train_step(model, batches[:1])
    hook.commit(1)
    model(batches[1][ids] + 1)
    with pytest.raises(Mismatch):
        hook.commit(2)
    hook.checkpoint_barrier(1)
    with pytest.raises(InputError, match="step 2 is not committed"):
        hook.checkpoint_barrier(2)
    with pytest.raises(Mismatch):
        hook.commit(2)
    hook.close()


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


def test_hooks_that_end_in_the_order_of_their_beginning(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    one, other = attach(Toy(), tmp_path / "one"), attach(Toy(), tmp_path / "other")
    one.close()
    other.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_labels_that_are_the_very_tokens_until_they_are_masked(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap([dict.fromkeys((ids, "labels"), microbatch(1)[ids])])
        masked = batch["labels"].masked_fill(batch["labels"] > 50, -100)
        model(batch[ids], labels=masked)
        hook.commit(1)
    assert same(exported_ids(tmp_path, "labels"), [masked])


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


def test_the_same_tokens_with_other_labels_are_no_repetition(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap(microbatches(1))
        for labels in (batch["labels"], batch["labels"] // 2, batch["labels"] // 2, batch["labels"]):
            model(batch[ids], labels=labels)
        hook.commit(1)
    assert same(exported_ids(tmp_path, "labels"), [batch["labels"], batch["labels"] // 2])


def test_a_part_of_what_was_fed_is_no_repetition(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path, shorter_rows=True) as hook:
        for step, (batch, first) in enumerate(zip(hook.wrap(microbatches(2)), (8, 16), strict=True), 1):
            model(batch[ids][:, :first])
            model(batch[ids][:, : 24 - first])
            hook.commit(step)
    assert same(exported_ids(tmp_path), model.seen)


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


def test_a_commit_that_was_refused_changes_nothing(tmp_path: Path) -> None:
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters())
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(microbatches(2)), 1):
            train_step(model, [batch])
            optimizer.step()
            with pytest.raises(InputError, match=f"expected commit of step {step}, found 7"):
                hook.commit(7)
            with pytest.raises(InputError, match="expected numbers"):
                hook.commit(step, metrics={"loss": None})  # type: ignore[dict-item]
            with pytest.raises(InputError, match=r"status: expected one of applied, .*, found 'done'"):
                hook.commit(step, status="done")
            hook.commit(step)
    assert step_statuses(tmp_path) == ["applied"] * 2


@pytest.mark.parametrize("kind", [np.array, list])
def test_sample_indices_in_a_buffer_that_is_used_again(tmp_path: Path, kind: Any) -> None:
    model = Toy()
    buffer = np.zeros(SLOTS, np.int64) if kind is np.array else [0] * SLOTS

    def loader() -> Any:
        for seed in range(3):
            buffer[:] = np.arange(SLOTS) + 10 * seed if kind is np.array else [10 * seed, 10 * seed + 1]
            yield {**microbatch(seed), "sample_index": buffer}

    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap(loader()), 1):
            train_step(model, [batch])
            hook.commit(step)
    assert [part.sample_index for part in exported(tmp_path).values()] == [(0, 1), (10, 11), (20, 21)]


def test_an_interrupt_while_a_forward_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Toy()
    hook = attach(model, tmp_path)
    (batch,) = hook.wrap(microbatches(1))
    stage = hook._exporter.stage  # type: ignore[union-attr]
    monkeypatch.setattr(hook._exporter, "stage", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train_step(model, [batch])
    monkeypatch.setattr(hook._exporter, "stage", stage)
    train_step(model, [batch])
    with pytest.raises(Mismatch, match="a forward was interrupted"):
        hook.commit(1)
    hook.close()


def test_more_gaps_than_the_queue_would_hold(tmp_path: Path) -> None:
    model = Toy()
    options = ExporterOptions(max_queue_bytes=8192, block_timeout_s=5, group_interval_s=0.0)
    with attach(model, tmp_path, on_mismatch="gap", options=options) as hook, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step, batch in enumerate(hook.wrap(microbatches(60)), 1):
            train_step(model, [batch])
            model(batch[ids] // 2 + 1)
            hook.commit(step)
        hook.checkpoint_barrier(60)


def test_pauses_within_pauses(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap(microbatches(1))
        with hook.paused():
            with hook.paused():
                pass
            model(microbatch(9)[ids])
        train_step(model, [batch])
        hook.commit(1)
    assert same(exported_ids(tmp_path), model.seen[1:])


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


def test_a_packed_row_of_one_dimension_without_its_last_token(tmp_path: Path) -> None:
    model = Ids()
    with attach(model, tmp_path) as hook:
        for step, batch in enumerate(hook.wrap({ids: microbatch(seed)[ids][0]} for seed in range(2)), 1):
            model(batch[ids][:-1])
            hook.commit(step)
    assert same(exported_ids(tmp_path), [microbatch(seed)[ids][:1] for seed in range(2)])
    assert {known(row)[1] for row in rows(tmp_path)} == {Matched.SLICE}


def test_labels_without_their_first_column_are_recorded_so(tmp_path: Path) -> None:
    model = Anything()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap(microbatches(1))
        model(batch[ids][:, :-1], labels=batch["labels"][:, 1:])
        hook.commit(1)
    (labels,) = exported_ids(tmp_path, "labels")
    assert torch.equal(labels, batch["labels"][:, 1:])
    assert {tensor.evidence for tensor in rows(tmp_path)[0].tensors} == {None}


def test_equal_copies_are_not_repetitions_where_the_forward_is_recorded(tmp_path: Path) -> None:
    """Nothing else tells two rollouts that came out alike from one that was fed twice."""
    model = Toy()
    with attach(model, tmp_path) as hook:
        (batch,) = hook.wrap(microbatches(1), record="forward")
        for tokens in (batch[ids], batch[ids], batch[ids].clone()):
            model(tokens)
        hook.commit(1)
    assert same(exported_ids(tmp_path), model.seen[:2])


def num_staged() -> int:
    return sum(type(found) is StagedMicrobatch for found in gc.get_objects())


def test_memory_is_given_back_without_the_garbage_collector(tmp_path: Path) -> None:
    model = Toy()
    with attach(model, tmp_path) as hook:
        gc.collect()
        before = num_staged()
        gc.disable()
        try:
            for step, batch in enumerate(hook.wrap(microbatches(30)), 1):
                train_step(model, [batch])
                hook.commit(step)
            hook.checkpoint_barrier(30)
            alive = num_staged() - before
        finally:
            gc.enable()
    assert alive <= 2
