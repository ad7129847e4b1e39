"""Hugging Face Trainer and Accelerate, the real packages."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.adapters import job
from tests.adapters.checks import Job, check_export, check_seen, crash_and_resume, exported, metrics_of
from tests.adapters.data.data import padded_tokens, unpadded_segments

pytestmark = pytest.mark.skipif(find_spec("transformers") is None, reason="make test-adapters has transformers")
HERE = Path(__file__).parent / "jobs"


def job_of(script: str, run: Path) -> Job:
    return Job(
        script=HERE / script, run=run, last_step=job.STEPS, killed_step=job.KILLED_STEP, resume_step=job.RESUME_STEP,
        rows_a_step=job.ACCUMULATION * job.MICRO_BATCH * job.RANKS,
    )  # fmt: skip


def test_trainer(tmp_path: Path) -> None:
    trained = job_of("hf_job.py", tmp_path / "run")
    crash_and_resume(trained)
    check_export(trained)
    check_seen(trained.run, "input_ids", "labels", "attention_mask", "position_ids")
    metrics = metrics_of(trained.run)
    assert set(metrics) == set(range(1, job.STEPS + 1))
    assert all({"loss", "lr", "grad_norm"} <= set(values) for values in metrics.values())


def test_padding_to_the_longest(tmp_path: Path) -> None:
    """Each micro-batch is as long as its longest sequence."""
    trained = job_of("hf_job.py", tmp_path / "run")
    crash_and_resume(trained, PADDED="1")
    check_export(trained, tokens=padded_tokens, documents=unpadded_segments)
    assert len({part.batch["input_ids"].shape[1] for part in exported(trained.run).values()}) > 3


def test_accelerate(tmp_path: Path) -> None:
    trained = job_of("accelerate_job.py", tmp_path / "run")
    crash_and_resume(trained)
    check_export(trained)
    check_seen(trained.run, "input_ids", "labels", "attention_mask", "position_ids")
    assert set(metrics_of(trained.run)) == set(range(1, job.STEPS + 1))
