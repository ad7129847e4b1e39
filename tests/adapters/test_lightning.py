"""Lightning, the real package."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.adapters import job
from tests.adapters.checks import (
    Job,
    check_export,
    check_matched,
    check_seen,
    crash_and_resume,
    exported,
    metrics_of,
    run_once,
    updated,
    verify,
)
from tests.adapters.data.data import LENGTH, VOCAB, Packed, collate
from tests.adapters.data.models import Small
from train_hooks.documents.in_batches import CarryingDocuments
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import StepStatus

pytestmark = pytest.mark.skipif(find_spec("lightning") is None, reason="make test-adapters has lightning")


def job_of(run: Path) -> Job:
    return Job(
        script=Path(__file__).parent / "jobs" / "lightning_job.py", run=run, last_step=job.STEPS,
        killed_step=job.KILLED_STEP, resume_step=job.RESUME_STEP,
        rows_a_step=job.ACCUMULATION * job.MICRO_BATCH * job.RANKS, goes_on=False,
    )  # fmt: skip


def test_trainer(tmp_path: Path) -> None:
    trained = job_of(tmp_path / "run")
    crash_and_resume(trained, TORCHELASTIC_RUN_ID="test")
    check_export(trained)
    check_seen(trained.run, "input_ids", "labels", "attention_mask", "position_ids")
    metrics = metrics_of(trained.run)
    assert set(metrics) == set(range(1, job.STEPS + 1))
    assert all({"loss", "lr"} <= set(values) for values in metrics.values())


def test_after_the_training(tmp_path: Path) -> None:
    """A checkpoint saved by hand can be resumed from; a second `fit` goes on as a new attempt."""
    trained = job_of(tmp_path / "run")
    run_once(trained, TORCHELASTIC_RUN_ID="test", AGAIN="1")
    saved = torch.load(trained.run / "after.ckpt", weights_only=False)["kiseki_export"]
    assert saved == {"run_id": RunReader(trained.run).info.run_id, "attempt": 1, "global_step": job.STEPS}
    first, second = (RunReader(trained.run).attempt(number).info for number in (1, 2))
    assert (first.parent_attempt, second.parent_attempt, second.resume_step) == (None, 1, job.STEPS)
    assert {step for attempt, step, _, _ in exported(trained.run) if attempt == 2} == {job.STEPS + 1, job.STEPS + 2}
    assert verify(trained.run) == 0


def test_overflow(tmp_path: Path) -> None:
    """fp16: the step of which no weight changes is recorded as skipped, though Lightning counts it."""
    trained = job_of(tmp_path / "run")
    run_once(trained, TORCHELASTIC_RUN_ID="test", OVERFLOW_AT="4")
    assert [key for key, changed in updated(trained.run / "log").items() if not changed] == [(1, 4)]
    expected = {
        step: StepStatus.SKIPPED_UPDATE if step == 4 else StepStatus.APPLIED for step in range(1, job.STEPS + 1)
    }
    assert RunReader(trained.run).attempt(1).step_status() == expected
    check_matched(trained.run, "whole")


def all_but_the_last(module: Any, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = module.model(batch["input_ids"][:, :-1], batch["labels"][:, :-1])
    return loss


def other_tokens(module: Any, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = module.model((batch["input_ids"] + 1) % VOCAB, batch["labels"])
    return loss


def of_two(module: Any, batch: dict[str, Tensor]) -> Tensor:
    loss: Tensor = module.model(**batch)
    return loss.add(module.other.weight.sum())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("step", "options", "matched"),
    [
        (lambda module, batch: module.model(**batch), {}, "whole"),
        (lambda module, batch: module(batch), {}, "whole"),
        (all_but_the_last, {}, "slice"),
        (other_tokens, {}, "count"),
        (of_two, {}, "count"),
        (of_two, {"listen_to": lambda module: module.model}, "whole"),
        (of_two, {"listen_to": lambda module: module.model.embed}, "whole"),
    ],
    ids=[
        "a child",
        "by the module's forward",
        "all but the last",
        "other tokens",
        "two children",
        "one named",
        "embedding",
    ],
)
def test_how_rows_are_known(
    tmp_path: Path, step: Callable[[Any, dict[str, Tensor]], Tensor], options: dict[str, Any], matched: str
) -> None:
    """By what the model in the LightningModule gets, not by what `training_step` is given."""
    from lightning.pytorch import LightningModule, Trainer

    from train_hooks.adapters.lightning import ExportCallback

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Small()
            if step is of_two:
                self.other = torch.nn.Linear(1, 1)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            loss: Tensor = self.model(**batch)
            return loss

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            return step(self, batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    loader: DataLoader[Any] = DataLoader(Packed(8), 2, collate_fn=CarryingDocuments(collate))
    run = tmp_path / "run"
    export = ExportCallback(run, sequence_length=LENGTH, vocab_size=VOCAB, config={}, **options)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[export],
    )  # fmt: skip
    trainer.fit(Module(), loader)
    assert RunReader(run).attempt(1).step_status() == dict.fromkeys((1, 2, 3), StepStatus.APPLIED)
    check_matched(run, matched)
