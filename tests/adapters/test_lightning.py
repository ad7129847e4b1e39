"""Lightning, the real package."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.adapters import job
from tests.adapters.checks import Job, check_export, crash_and_resume, exported, metrics_of, run_once, verify
from train_hooks.export_format.reader import RunReader

pytestmark = pytest.mark.skipif(find_spec("lightning") is None, reason="make test-adapters has lightning")


def job_of(run: Path) -> Job:
    return Job(
        script=Path(__file__).parent / "lightning_job.py", run=run, last_step=job.STEPS,
        killed_step=job.KILLED_STEP, resume_step=job.RESUME_STEP,
        rows_a_step=job.ACCUMULATION * job.MICRO_BATCH * job.RANKS, goes_on=False,
    )  # fmt: skip


def test_trainer(tmp_path: Path) -> None:
    trained = job_of(tmp_path / "run")
    crash_and_resume(trained, TORCHELASTIC_RUN_ID="test")
    check_export(trained)
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
