"""Forwards that get tensors on a device, through the whole hook: the same rules, and the training never waits.

The device is pretended, and stricter than a device (`tests.support.pretend_device`): what would wait raises, and what reads
a copy too early reads noise.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.support.pretend_device import PretendDevice, pretend_device
from tests.train_hooks.hook.matching.test_evidence import Anything, known
from tests.train_hooks.hook.toy import (
    LENGTH,
    SLOTS,
    VOCAB,
    Toy,
    attach,
    exported,
    microbatch,
    microbatches,
    rows,
    same,
)
from train_hooks.export_format.errors import ExportStopped
from train_hooks.export_format.records import Evidence, Matched
from train_hooks.replay import ReplayDataset

Batch = dict[str, Any]
ids = "input_ids"
HOST, DEVICE = "fetched on the host", "fetched on the device"
both = pytest.mark.parametrize("where", [HOST, DEVICE])


@pytest.fixture
def device() -> Iterator[PretendDevice]:
    with pretend_device(delay_s=0.002) as pretended:
        yield pretended


class Job:
    """A model, the hook on it, and what its training forwards got."""

    def __init__(self, device: PretendDevice, run_dir: Path, where: str = HOST, **options: Any) -> None:
        self.device, self.run_dir, self.where = device, run_dir, where
        self.model = Toy()
        self.hook = attach(self.model, run_dir, **options)
        self.forwards: list[Batch] = []
        self.model.register_forward_pre_hook(self._see, with_kwargs=True)

    def wrap(self, num: int, *, documents: bool = False, **options: Any) -> Iterator[Batch]:
        """What the loop feeds for each of `num` fetched micro-batches: it is on the device."""
        batches = (microbatch(seed, documents=documents) for seed in range(num))
        if self.where == DEVICE:
            yield from self.hook.wrap(map(self.device.moved, batches), **options)
        else:
            yield from map(self.device.moved, self.hook.wrap(batches, **options))

    def forward(self, *args: Tensor, **kwargs: Tensor) -> None:
        """Forward and backward."""
        self.model(*args, **kwargs).backward()

    def expect(self, forwards: list[Batch] | None = None) -> None:
        """The export holds what the forwards got, or these of them, and nothing else."""
        self.hook.close()
        expected = self.forwards if forwards is None else forwards
        found = [part.batch for part in ReplayDataset(self.run_dir)]
        assert [sorted(batch) for batch in found] == [sorted(batch) for batch in expected]
        for ours, theirs in zip(expected, found, strict=True):
            for name, tensor in ours.items():
                assert tensor.dtype == theirs[name].dtype
                assert torch.equal(tensor, theirs[name])

    def _see(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: Batch) -> None:
        got = dict(zip((ids, "labels"), args, strict=False)) | kwargs
        if module.training:
            self.forwards.append({name: self.device.read(tensor) for name, tensor in got.items()})


def not_by_forward(run_dir: Path) -> set[tuple[str, object]]:
    """Tensors with another evidence than that a forward got them."""
    return {(tensor.name, tensor.evidence) for row in rows(run_dir) for tensor in row.tensors if tensor.evidence}


@both
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_export_is_what_the_forwards_got(
    device: PretendDevice, tmp_path: Path, where: str, accumulation: int
) -> None:
    """The loop writes over the tensors as soon as it does not need them: what was sent was cloned."""
    job = Job(device, tmp_path, where)
    optimizer = torch.optim.SGD(job.model.parameters(), lr=0.1)
    for number, fed in enumerate(job.wrap(9, documents=True), 1):
        job.forward(**{name: fed[name] for name in (ids, "labels")})
        for name in (ids, "labels"):
            fed[name].zero_()
        if number % accumulation == 0:
            optimizer.step()
            job.hook.commit(number // accumulation)
    job.expect()
    assert {known(row) for row in rows(tmp_path)} == {(None, None, None)}
    assert not_by_forward(tmp_path) == set()
    for seed, part in enumerate(exported(tmp_path).values()):
        given = microbatch(seed, documents=True)
        assert part.segments == tuple(map(tuple, given["segments"]))
        assert part.sample_index == tuple(given["sample_index"].tolist())


def _in_place(fed: Batch) -> list[Batch]:
    fed["labels"].masked_fill_(fed["labels"] % 5 == 0, -100)
    return [fed]


def _through_data(fed: Batch) -> list[Batch]:
    fed["labels"].data.masked_fill_(fed["labels"] % 5 == 0, -100)
    return [fed]


EDITS: dict[str, tuple[Callable[[Batch], list[Batch]], tuple[object, ...]]] = {
    "labels out of place": (lambda b: [b | {"labels": b["labels"].masked_fill(b["labels"] % 5 == 0, -100)}], (None, None)),
    "labels in place": (_in_place, (None, None)),
    "labels through .data": (_through_data, (None, None)),
    "rows split": (lambda b: [{name: b[name][at] for name in b} for at in (slice(1), slice(1, None))], (None, "rows")),
    "rows in another order": (lambda b: [{name: b[name].flip(0) for name in b}], (None, "rows")),
    "a row left out": (lambda b: [{name: b[name][1:] for name in b}], (None, "rows")),
    "all but the last column": (lambda b: [{ids: b[ids][:, :-1], "labels": b["labels"][:, :-1]}], (Matched.SLICE, "[:, :-1]")),
    "another integer dtype": (lambda b: [{**b, ids: b[ids].int()}], (None, "dtype int32")),
}  # fmt: skip


@both
@pytest.mark.parametrize("edit", EDITS)
def test_what_a_loop_does_on_the_device(device: PretendDevice, tmp_path: Path, where: str, edit: str) -> None:
    """The forwards get it by keyword, or by position."""
    job = Job(device, tmp_path, where)
    edited, (matched, relation) = EDITS[edit]
    for step, fed in enumerate(job.wrap(3), 1):
        for part in edited(fed):
            if where == DEVICE:
                job.forward(*part.values())
            else:
                job.forward(**part)
        job.hook.commit(step)
    job.hook.close()
    assert {known(row) for row in rows(tmp_path)} == {(None, matched, relation)}
    assert not_by_forward(tmp_path) == set()
    if matched is None:
        job.expect([{name: tensor.long() for name, tensor in batch.items()} for batch in job.forwards])
    else:
        job.expect([microbatch(seed) for seed in range(3)])


@both
def test_rows_that_are_concatenated(device: PretendDevice, tmp_path: Path, where: str) -> None:
    job = Job(device, tmp_path, where)
    waiting: list[Batch] = []
    for number, fed in enumerate(job.wrap(6), 1):
        waiting.append(fed)
        if number % 3 == 0:
            job.forward(**{name: torch.cat([each[name] for each in waiting[1:] + waiting[:1]]) for name in fed})
            waiting.clear()
            job.hook.commit(number // 3)
    job.expect()
    assert {known(row) for row in rows(tmp_path)} == {(None, None, "rows")}


@both
def test_columns_that_were_trimmed(device: PretendDevice, tmp_path: Path, where: str) -> None:
    for shorter_rows in (True, False):
        job = Job(device, tmp_path / str(shorter_rows), where, shorter_rows=shorter_rows)
        (fed,) = job.wrap(1)
        job.forward(**{name: tensor[:, :10] for name, tensor in fed.items()})
        job.hook.commit(1)
        if shorter_rows:
            job.expect()
        else:
            with pytest.raises(ExportStopped, match=r"first 10 of 16 tokens of its rows; with shorter_rows=True"):
                job.hook.close()


@both
def test_a_part_of_the_columns_that_was_declared(device: PretendDevice, tmp_path: Path, where: str) -> None:
    job = Job(device, tmp_path, where)
    for step, fed in enumerate(job.wrap(2, columns=slice(0, 8)), 1):
        job.forward(fed[ids][:, :8])
        job.hook.commit(step)
    job.expect([microbatch(seed) for seed in range(2)])
    assert {known(row) for row in rows(tmp_path)} == {(None, Matched.SLICE, "[:, 0:8]")}


@pytest.mark.parametrize("record", ["loader", "forward"])
@pytest.mark.parametrize("through_data", [False, True])
@pytest.mark.parametrize("late", [False, True])
def test_a_static_buffer(device: PretendDevice, tmp_path: Path, record: Any, through_data: bool, late: bool) -> None:
    """The forwards of a step get the same memory, filled anew; each is sent before the next."""
    job = Job(device, tmp_path)
    static = device.moved(microbatch(99))
    if late:
        device.hold()
    for number, batch in enumerate(job.hook.wrap(microbatches(6), record=record), 1):
        for name, tensor in device.moved(batch).items():
            (static[name].data if through_data else static[name]).copy_(tensor)
        job.forward(**static)
        if number % 3 == 0:
            job.hook.commit(number // 3)
    device.release()
    job.expect()


@both
def test_what_the_forward_gets_is_recorded(device: PretendDevice, tmp_path: Path, where: str) -> None:
    """A masked language model, and a forward that is done again."""
    job = Job(device, tmp_path, where)
    for step, fed in enumerate(job.wrap(4, documents=True, record="forward"), 1):
        masked = fed[ids].masked_fill(fed[ids] % 7 == step % 7, VOCAB - 1)
        for _ in range(2):
            job.forward(masked, labels=fed["labels"].masked_fill(masked != VOCAB - 1, -100))
        job.hook.commit(step)
    job.expect(job.forwards[::2])
    for seed, part in enumerate(exported(tmp_path).values()):
        assert part.segments == tuple(map(tuple, microbatch(seed, documents=True)["segments"]))


@both
@pytest.mark.parametrize("late", [False, True])
def test_forwards_that_trained_nothing_are_discarded(
    device: PretendDevice, tmp_path: Path, where: str, late: bool
) -> None:
    """A loss that is not a number; and memory that ran out, after which halves are fed."""
    job = Job(device, tmp_path, where)
    batches = list(job.wrap(4))
    if late:
        device.hold()
    job.forward(**batches[0])
    job.hook.discard()
    job.forward(**batches[1])
    job.hook.commit(1)
    job.forward(**batches[2])
    job.hook.discard()
    for half in (slice(1), slice(1, 2)):
        job.forward(**{name: value[half] for name, value in batches[2].items()})
    job.hook.commit(2)
    device.release()
    job.forward((batches[3][ids] + 1) % VOCAB)
    job.hook.discard()
    job.forward(**batches[3])
    job.hook.commit(3)
    job.expect([job.forwards[at] for at in (1, 3, 4, 6)])


@both
def test_labels_that_the_loss_was_computed_from_are_declared(device: PretendDevice, tmp_path: Path, where: str) -> None:
    job = Job(device, tmp_path, where)
    expected = []
    for step, fed in enumerate(job.wrap(3), 1):
        job.forward(fed[ids])
        labels = fed["labels"].masked_fill(fed["labels"] > 50, -100)
        job.hook.trained_on(labels=labels, weights=[0.5, 1.0])
        expected.append(
            {ids: job.forwards[-1][ids], "labels": device.read(labels), "weights": torch.tensor([0.5, 1.0]).double()}
        )
        labels.zero_()
        job.hook.commit(step)
    job.expect(expected)
    assert not_by_forward(tmp_path) == {("labels", Evidence.DECLARED), ("weights", Evidence.DECLARED)}


def checkpointed(model: nn.Module, fed: Batch) -> None:
    """Forward, and in the backward the forward again."""
    checkpoint(model, fed[ids], fed["labels"], use_reentrant=False).backward()


@both
@pytest.mark.parametrize("record", ["loader", "forward"])
def test_a_repetition_consumes_nothing_more(device: PretendDevice, tmp_path: Path, where: str, record: Any) -> None:
    """Activation checkpointing around the model; and equal micro-batches, which are no repetitions."""
    job = Job(device, tmp_path, where)
    again = [microbatch(7), microbatch(7), microbatch(8)]
    batches = map(device.moved, again) if where == DEVICE else iter(again)
    for step, batch in enumerate(job.hook.wrap(batches, record=record), 1):
        fed = batch if where == DEVICE else device.moved(batch)
        checkpointed(job.model, fed)
        job.hook.commit(step)
    assert len(job.forwards) == 6
    job.expect(again)


def test_labels_that_are_declared_after_a_repetition(device: PretendDevice, tmp_path: Path) -> None:
    """On a CPU, they are those of the last consumed micro-batch."""
    job = Job(device, tmp_path)
    (fed,) = job.wrap(1)
    checkpointed(job.model, fed)
    job.hook.trained_on(labels=fed["labels"] * 0)
    job.hook.commit(1)
    job.hook.close()
    assert not_by_forward(tmp_path) == {("labels", Evidence.DECLARED)}


def test_what_is_counted_is_compared(device: PretendDevice, tmp_path: Path) -> None:
    job = Job(device, tmp_path)
    job.hook.listen(job.model, counting=True)
    for step, fed in enumerate(job.wrap(3), 1):
        job.forward(fed[ids] if step < 3 else (fed[ids] + 1) % VOCAB, labels=fed["labels"])
        job.hook.consume()
        job.hook.commit(step)
    job.expect([microbatch(seed) for seed in range(3)])
    assert [known(row) for row in rows(tmp_path)[::SLOTS]] == [
        (None, None, None), (None, None, None), (Evidence.LOADER, Matched.COUNT, None)
    ]  # fmt: skip


def test_a_replay_that_calls_no_hooks(device: PretendDevice, tmp_path: Path) -> None:
    job = Job(device, tmp_path)
    static = device.moved(microbatch(99))
    for step, batch in enumerate(job.hook.wrap(microbatches(3)), 1):
        for name, tensor in device.moved(batch).items():
            static[name].copy_(tensor)
        job.hook.forwarded(**static)
        job.hook.commit(step)
    job.expect([microbatch(seed) for seed in range(3)])


@pytest.mark.parametrize(
    "how",
    [
        "moved",
        "edited",
        "fetched there",
        "fetched there, edited",
    ],
)
def test_tokens_on_the_host_and_a_mask_on_the_device(device: PretendDevice, tmp_path: Path, how: str) -> None:
    """As where DDP or FSDP, the outermost callable, moves the tokens. The mask is recorded, or the loader's, as such."""
    masks = [torch.arange(SLOTS * LENGTH).reshape(SLOTS, LENGTH) % 5 == seed for seed in range(3)]
    model = Anything()
    with attach(model, tmp_path) as hook:
        batches = ({**microbatch(seed), "attention_mask": mask} for seed, mask in enumerate(masks))
        if "fetched" in how:
            batches = ({**batch, "attention_mask": device.move(batch["attention_mask"])} for batch in batches)
        for step, batch in enumerate(hook.wrap(batches), 1):
            mask = batch["attention_mask"] if "fetched" in how else device.move(masks[step - 1])
            model(batch[ids], attention_mask=~mask if "edited" in how else mask).backward()
            hook.commit(step)
    found = [part.batch["attention_mask"] for part in exported(tmp_path).values()]
    by_loader = ("attention_mask", Evidence.LOADER) in not_by_forward(tmp_path)
    assert same(found, [~mask if "edited" in how and not by_loader else mask for mask in masks])


def test_other_tensors_of_every_kind(device: PretendDevice, tmp_path: Path) -> None:
    """Numbers of several types, of the rows and of the micro-batch as a whole, edited or not."""
    model = Anything()
    hook = attach(model, tmp_path)

    def given(seed: int) -> Batch:
        random = torch.Generator().manual_seed(seed)
        return {
            ids: microbatch(seed)[ids].int(),
            "labels": microbatch(seed)["labels"],
            "attention_mask": torch.rand(SLOTS, LENGTH, generator=random) < 0.5,
            "weights": torch.rand(SLOTS, LENGTH, generator=random, dtype=torch.bfloat16),
            "position_ids": torch.arange(LENGTH).expand(SLOTS, -1).contiguous() + seed,
            "cu_seqlens": torch.tensor([0, 5, 9 + seed, SLOTS * LENGTH], dtype=torch.int32),
        }

    for step, batch in enumerate(hook.wrap(map(given, range(3))), 1):
        fed = device.moved(batch)
        fed["weights"] = fed["weights"] * 2
        model(**fed)
        hook.commit(step)
    hook.close()
    for seed, part in enumerate(exported(tmp_path).values()):
        expected = given(seed)
        expected["weights"] = expected["weights"] * 2
        assert sorted(part.batch) == sorted(expected)
        assert same([part.batch[name] for name in expected], list(expected.values()))
    assert not_by_forward(tmp_path) == set()


def test_equal_tokens_with_other_labels(device: PretendDevice, tmp_path: Path) -> None:
    """The labels are those of the forward, whichever of the two comes first."""
    job = Job(device, tmp_path)
    batches = [microbatch(1), {**microbatch(1), "labels": microbatch(2)["labels"]}]
    first, second = map(device.moved, job.hook.wrap(batches))
    for step, fed in enumerate((second, first), 1):
        job.forward(**fed)
        job.hook.commit(step)
    job.expect()
