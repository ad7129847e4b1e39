"""Composer, the real package."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.adapters import job
from tests.adapters.checks import Job, check_export, check_seen, crash_and_resume, metrics_of

pytestmark = pytest.mark.skipif(find_spec("composer") is None, reason="make test-adapters has composer")


def test_trainer(tmp_path: Path) -> None:
    trained = Job(
        script=Path(__file__).parent / "jobs" / "composer_job.py", run=tmp_path / "run", last_step=job.STEPS,
        killed_step=job.KILLED_STEP, resume_step=job.RESUME_STEP,
        rows_a_step=job.ACCUMULATION * job.MICRO_BATCH * job.RANKS,
    )  # fmt: skip
    crash_and_resume(trained, NODE_RANK="0")
    check_export(trained)
    check_seen(trained.run, "input_ids", "labels", "attention_mask", "position_ids")
    metrics = metrics_of(trained.run)
    assert set(metrics) == set(range(1, job.STEPS + 1))
    assert all({"loss", "lr"} <= set(values) for values in metrics.values())
