"""Forwards that get tensors on a pretended device: what is refused, when it is told, and that the training never waits."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.pretend_device import NOISE, PretendDevice, Waits, is_on_device, pretend_device
from tests.train_hooks.hook.matching.test_evidence import Anything
from tests.train_hooks.hook.tensors.test_pretend_device import DEVICE, HOST, Batch, Job, both, ids
from tests.train_hooks.hook.toy import SLOTS, VOCAB, attach, exported, microbatch, microbatches, rows
from train_hooks import ExportHook
from train_hooks.export_format.errors import ExportStopped, InputError
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.hook.export.exporter import ExporterOptions
from train_hooks.hook.tensors.host_copies import BufferPool, copy_tensor

DID_NOT_YIELD = (
    r"step 2: 1 of 1 forwards got something else .*: a forward got 'input_ids' .*that the wrapped loader did not yield"
)


@pytest.fixture
def device() -> Iterator[PretendDevice]:
    with pretend_device(delay_s=0.002) as pretended:
        yield pretended


def _on_the_host(fed: Batch, given: Batch, device: PretendDevice) -> Tensor:  # noqa: ARG001
    given[ids][0, 3] = (given[ids][0, 3] + 1) % VOCAB
    return device.move(given[ids])


def _by_an_index(fed: Batch, given: Batch, device: PretendDevice) -> Tensor:  # noqa: ARG001
    fed[ids][0, 3] = (fed[ids][0, 3] + 1) % VOCAB
    return fed[ids]  # type: ignore[no-any-return]


def _behind_torchs_back(fed: Batch, given: Batch, device: PretendDevice) -> Tensor:  # noqa: ARG001
    fed[ids].data[1, 15] = (fed[ids][1, 15] + 1) % VOCAB
    return fed[ids]  # type: ignore[no-any-return]


REFUSED: dict[str, tuple[str, Callable[[Batch, Batch, PretendDevice], Tensor]]] = {
    "on the host, then moved": (HOST, _on_the_host),
    "a copy, in place": (HOST, _by_an_index),
    "a copy, through .data": (HOST, _behind_torchs_back),
    "a copy, out of place": (HOST, lambda fed, _, __: (fed[ids] + 1) % VOCAB),
    "fetched, in place": (DEVICE, _by_an_index),
    "fetched, through .data": (DEVICE, _behind_torchs_back),
    "fetched, out of place": (DEVICE, lambda fed, _, __: (fed[ids] + 1) % VOCAB),
    "nobody's": (DEVICE, lambda _, __, device: device.move(microbatch(1000)[ids])),
}


def go_on(job: Job, at: str, fetched: Iterator[Batch]) -> None:
    """After a step that is refused."""
    if at == "close":
        job.hook.close()
    elif at == "a barrier":
        job.hook.checkpoint_barrier(2)
    else:
        for step, batch in enumerate(fetched, 3):
            job.forward(**batch if job.where == DEVICE else job.device.moved(batch))
            job.hook.commit(step)
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("edit", "at"),
    [
        *((edit, "a barrier") for edit in REFUSED),
        ("a copy, in place", "the next commits"),
        ("fetched, in place", "close"),
    ],
)
def test_edited_tokens_are_refused(device: PretendDevice, tmp_path: Path, edit: str, at: str) -> None:
    """The commit of the step returns before the tokens have arrived; what comes next and finds them compared raises."""
    where, edited = REFUSED[edit]
    job = Job(device, tmp_path, where, options=ExporterOptions(group_interval_s=0.0))
    given: list[Batch] = []
    source = (given.append(batch) or batch for batch in microbatches(200))  # type: ignore[func-returns-value]
    fetched = iter(job.hook.wrap(map(device.moved, source) if where == DEVICE else source))
    job.forward(**device.moved(batch) if not is_on_device((batch := next(fetched))[ids]) else batch)
    job.hook.commit(1)
    job.hook.checkpoint_barrier(1)
    device.hold()
    batch = next(fetched)
    fed = batch if where == DEVICE else device.moved(batch)
    job.forward(edited(fed, given[-1], device), labels=fed["labels"])
    job.hook.commit(2)
    device.release()
    with pytest.raises(ExportStopped, match=DID_NOT_YIELD):
        go_on(job, at, fetched)
    assert job.hook.acknowledged_step == 1
    with pytest.raises(ExportStopped, match="step 2"):
        job.hook.commit(job.hook.committed_step + 1)
    with pytest.raises(ExportStopped, match="step 2"):
        job.hook.close()
    assert [row.address.global_step for row in rows(tmp_path)] == [1] * SLOTS


def test_a_mismatch_becomes_a_gap(device: PretendDevice, tmp_path: Path) -> None:
    job = Job(device, tmp_path, on_mismatch="gap")
    device.hold()
    for step, fed in enumerate(job.wrap(4), 1):
        job.forward(**fed)
        if step == 2:
            job.forward(fed[ids] * 0 + 1, labels=fed["labels"])
        job.hook.commit(step)
    device.release()
    with pytest.warns(UserWarning, match="written as a gap, without its rows: step 2: 1 of 2 forwards"):
        job.hook.checkpoint_barrier(4)
    assert job.hook.acknowledged_step == 4
    job.hook.close()
    assert [row.address.global_step for row in rows(tmp_path)] == [1, 1, 3, 3, 4, 4]
    del job.forwards[1:3]
    found = [row.tokens.tolist() for row in rows(tmp_path)]
    assert found == [row.tolist() for forward in job.forwards for row in forward[ids]]
    reader = RunReader(tmp_path).attempt(1)
    gaps = [record for _, record in reader.step_records() if record.kind == "gap"]
    assert [(gap.global_step, gap.values) for gap in gaps] == [(2, {"num_rows": SLOTS})]


def test_trained_on_wants_a_forward(device: PretendDevice, tmp_path: Path) -> None:
    job = Job(device, tmp_path)
    (fed,) = job.wrap(1)
    with pytest.raises(InputError, match="expected a forward of a fetched micro-batch"):
        job.hook.trained_on(labels=fed["labels"])
    job.forward(**fed)
    job.hook.commit(1)
    job.expect()


def test_declared_labels_of_too_few_rows(device: PretendDevice, tmp_path: Path) -> None:
    """On a CPU, trained_on raises InputError."""
    job = Job(device, tmp_path)
    (fed,) = job.wrap(1)
    job.forward(**fed)
    with pytest.raises((InputError, ExportStopped), match="expected 'labels' with an item for each of 2 rows"):  # noqa: PT012
        job.hook.trained_on(labels=fed["labels"][:1])
        job.hook.commit(1)
        job.hook.close()


@both
def test_copies_that_end_long_after_the_commit(device: PretendDevice, tmp_path: Path, where: str) -> None:
    """The training goes on for steps, and nothing is acknowledged; then they arrive one by one."""
    job = Job(device, tmp_path, where, options=ExporterOptions(group_interval_s=0.0))
    device.hold()
    for number, fed in enumerate(job.wrap(10), 1):
        job.forward(**fed)
        if number % 2 == 0:
            job.hook.commit(number // 2)
    time.sleep(0.05)
    assert job.hook.acknowledged_step == 0
    assert device.num_finished == 0
    for _ in range(60):
        device.hold(after=1)
        time.sleep(0.002)
    device.release()
    job.hook.checkpoint_barrier(5)
    assert job.hook.acknowledged_step == 5
    job.expect()


@both
def test_fetched_and_thrown_away_while_copies_are_under_way(device: PretendDevice, tmp_path: Path, where: str) -> None:
    """Micro-batches that no forward gets are left out, some of them forgotten at the end of an epoch."""
    job = Job(device, tmp_path, where)
    device.hold()
    for number, fed in enumerate(job.wrap(9)):
        if number % 3:
            job.forward(**fed)
        if number % 3 == 2:
            job.hook.commit(number // 3 + 1)
    device.release()
    job.expect()


def test_what_was_fed_is_not_forgotten(device: PretendDevice, tmp_path: Path) -> None:
    """On a CPU, a micro-batch is consumed as it is fed, and forget_fetched means the others."""
    job = Job(device, tmp_path)
    device.hold()
    (fed,) = job.wrap(1)
    job.forward(**fed)
    job.hook.commit(1)
    job.hook.forget_fetched()
    device.release()
    job.expect()


def test_more_fetched_ahead_than_is_configured(device: PretendDevice, tmp_path: Path) -> None:
    job = Job(device, tmp_path, DEVICE, options=ExporterOptions(max_fetched_bytes=20_000))
    first, *_ = job.wrap(40)
    job.forward(**first)
    job.hook.commit(1)
    with pytest.raises(ExportStopped, match="step 1: 1 of 1 forwards"):
        job.hook.close()


def test_steps_that_are_dropped(device: PretendDevice, tmp_path: Path) -> None:
    """The queue is full of steps whose copies do not end: the others are gaps of as many rows."""
    options = ExporterOptions(when_full="drop", max_queue_bytes=3000, group_interval_s=0.0)
    job = Job(device, tmp_path, options=options)
    device.hold()
    for step, fed in enumerate(job.wrap(5), 1):
        job.forward(**fed)
        job.hook.commit(step)
        if step == 4:
            device.release()
            job.hook.checkpoint_barrier(step)
    job.hook.close()
    assert [row.address.global_step for row in rows(tmp_path)] == [1, 1, 5, 5]
    gaps = [record for _, record in RunReader(tmp_path).attempt(1).step_records() if record.kind == "gap"]
    assert [(gap.global_step, gap.values) for gap in gaps] == [(step, {"num_rows": SLOTS}) for step in (2, 3, 4)]


def test_a_forward_in_evaluation_mode_counts_if_it_gets_a_fetched_micro_batch(
    device: PretendDevice, tmp_path: Path
) -> None:
    job = Job(device, tmp_path)
    for step, fed in enumerate(job.wrap(2), 1):
        job.model.eval()
        job.forward(device.move(microbatch(100 + step)[ids]))
        if step == 2:
            job.forward(**fed)
        job.model.train()
        if step == 1:
            job.forward(**fed)
        job.hook.commit(step)
    job.expect([microbatch(0), microbatch(1)])


def test_forwards_that_do_not_count(device: PretendDevice, tmp_path: Path) -> None:
    job = Job(device, tmp_path)
    other = device.move(microbatch(1000)[ids])
    job.forward(other)  # a dry run
    for step, fed in enumerate(job.wrap(2), 1):
        with job.hook.paused():
            job.forward(other)
        with torch.no_grad():
            job.model(other)
        job.forward(**fed)
        job.hook.commit(step)
    job.expect([microbatch(seed) for seed in range(2)])


def test_documents_of_what_was_fetched_long_before(device: PretendDevice, tmp_path: Path) -> None:
    """A trainer that fetches all micro-batches of a step before it. So it is on a CPU."""
    job = Job(device, tmp_path)
    for fed in list(job.wrap(70, documents=True, record="forward")):
        job.forward(fed[ids])
    job.hook.commit(1)
    job.hook.close()
    assert sum(any(part.segments) for part in exported(tmp_path).values()) == 70


def test_pinned_memory_is_used_again(device: PretendDevice, tmp_path: Path) -> None:
    job = Job(device, tmp_path, DEVICE)
    for step, fed in enumerate(job.wrap(20), 1):
        job.forward(**fed)
        job.hook.commit(step)
        job.hook.checkpoint_barrier(step)
    assert device.num_pinned == 4  # tokens and labels, of the fetch and of the forward
    job.expect()


class Operations:
    """Lines and calls, of Python and of C, that this thread runs in `train_hooks`."""

    def __init__(self) -> None:
        self.num = 0

    def __enter__(self) -> "Operations":
        sys.settrace(self._trace)
        sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        sys.setprofile(None)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if "/train_hooks/" not in frame.f_code.co_filename or "/tests/" in frame.f_code.co_filename:
            return None
        self.num += event == "line"
        return self._trace

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        self.num += event == "c_call" and "/train_hooks/" in frame.f_code.co_filename


def operations(device: PretendDevice, run_dir: Path, where: str, record: Any, num_pending: int) -> list[int]:
    """Of each step: fetch the next, feed the oldest and commit, with so many fetched ahead. Half of it with a late device."""
    model = Anything()
    found = []
    with attach(model, run_dir, options=ExporterOptions(group_interval_s=3600.0)) as hook:
        hook.commit(1, status="skipped_data")  # looks for an optimizer, once
        batches = microbatches(num_pending + 20)
        loader = iter(hook.wrap(map(device.moved, batches) if where == DEVICE else batches, record=record))
        waiting = deque(next(loader) for _ in range(num_pending))
        for step in range(2, 22):
            with Operations() as counted:
                waiting.append(next(loader))
            fed = waiting.popleft()
            fed = fed if where == DEVICE else device.moved(fed)
            with counted:
                model(**fed)
                hook.commit(step)
            found.append(counted.num)
            if step == 10:
                hook.checkpoint_barrier(step)
                device.hold()
        device.release()
    return found


@both
@pytest.mark.parametrize("record", ["loader", "forward"])
def test_the_trainings_thread_does_the_same_whatever_is_pending(
    device: PretendDevice, tmp_path: Path, where: str, record: Any
) -> None:
    none = operations(device, tmp_path / "none", where, record, 0)
    many = operations(device, tmp_path / "many", where, record, 500)
    bound = {"loader": 10, "forward": 200}[record]  # record="forward" looks through the newest 64, on the writer thread
    assert 100 < max(many) <= max(none) + bound < 1000


def test_the_device_is_stricter_than_a_device(device: PretendDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = device.move(torch.arange(4))
    assert is_on_device(tensor[1:] + 1)
    assert not tensor.view(2, 2).is_cpu
    assert device.read(tensor).is_cpu
    for wait in (tensor.tolist, tensor.cpu, tensor.numpy, tensor[0].item, lambda: bool(tensor[0])):
        with pytest.raises(Waits):
            wait()
    with pytest.raises(Waits, match="pinned"):
        torch.empty(4).copy_(tensor, non_blocking=True)
    copy = copy_tensor(tensor, BufferPool())
    assert copy.buffer.tolist() == [NOISE] * 4
    with pytest.raises(Waits, match="training's thread"):
        copy.tensor()
    monkeypatch.setattr(device, "_training", None)
    assert copy.tensor().tolist() == [0, 1, 2, 3]
    for needed in ("record_stream", "wait_stream"):
        with monkeypatch.context() as patch:
            owner = Tensor if needed == "record_stream" else device.Stream(torch.device("cpu")).__class__
            patch.setattr(owner, needed, lambda *_: None)
            assert copy_tensor(device.move(torch.arange(4)), BufferPool()).tensor().tolist() == [NOISE] * 4


def test_a_hook_that_waits_is_found(device: PretendDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExportHook, "_on_forward", lambda *given, **_: given[1][0].sum().item())
    job = Job(device, tmp_path)
    (fed,) = job.wrap(1)
    with pytest.raises(Waits):
        job.model(fed[ids])
    job.hook.close()
