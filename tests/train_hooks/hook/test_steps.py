"""Steps: what is discarded, skipped, refused or written as a gap, and what the training may do in between."""

import contextlib
import gc
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train_hooks.hook.matching.forwards import ids, step_statuses
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
from train_hooks.export_format.errors import InputError, Mismatch
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import StepStatus
from train_hooks.hook.export.exporter import ExporterOptions
from train_hooks.hook.export.staging import StagedMicrobatch


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


def test_hooks_that_end_in_the_order_of_their_beginning(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    one, other = attach(Toy(), tmp_path / "one"), attach(Toy(), tmp_path / "other")
    one.close()
    other.close()
    assert signal.getsignal(signal.SIGTERM) == before


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
