"""llm-foundry, the real package: its own `train`, text dataloader and MPT model."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters import job
from tests.adapters.checks import Job, Key, crash_and_resume, exported, logged, metrics_of, verify

if find_spec("llmfoundry") is None:
    pytest.skip("make test-adapters has llm-foundry", allow_module_level=True)

from tests.adapters.llm_foundry_data import prepare
from train_hooks.replay import ReplayMicrobatch

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS_A_STEP = job.ACCUMULATION * job.MICRO_BATCH * job.RANKS


def trained(directory: Path, loader: dict[str, Any]) -> dict[Key, ReplayMicrobatch]:
    """Train, kill, resume; the export equals the log of the forwards, and each global batch is whole."""
    run = directory / "run"
    prepare(directory)
    of_job = Job(
        script=Path(__file__).parent / "llm_foundry_job.py", run=run, last_step=job.STEPS, killed_step=job.KILLED_STEP,
        resume_step=job.RESUME_STEP, rows_a_step=ROWS_A_STEP,
    )  # fmt: skip
    crash_and_resume(of_job, json.dumps(loader), NODE_RANK="0", HF_HUB_OFFLINE="1")
    log, export = logged(run / "log"), exported(run)
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert job.RESUME_STEP <= last < job.KILLED_STEP
    assert set(export) == {key for key in log if key[0] == 2 or key[1] <= last}
    for key, part in export.items():
        assert {"input_ids", "attention_mask"} <= set(log[key])
        for name, seen in log[key].items():
            assert torch.equal(part.batch[name].to(seen.dtype), seen), (key, name)
    check_global_batches(export)
    assert verify(run) == 0
    metrics = metrics_of(run)
    assert set(metrics) == set(range(1, job.STEPS + 1))
    assert all({"loss", "lr"} <= set(values) for values in metrics.values())
    return export


def rows_of(export: dict[Key, ReplayMicrobatch]) -> dict[tuple[int, int], list[tuple[int, ...]]]:
    """(attempt, step) → the tokens of every row of the global batch."""
    found: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for (attempt, step, _, _), part in export.items():
        found.setdefault((attempt, step), []).extend(tuple(row) for row in part.batch["input_ids"].tolist())
    return found


def check_global_batches(export: dict[Key, ReplayMicrobatch]) -> None:
    """No sequence twice, in a step or on the lineage; superseded steps are repeated with the same sequences."""
    rows = rows_of(export)
    assert all(len(of_step) == ROWS_A_STEP for of_step in rows.values())
    lineage = [row for step in range(1, job.STEPS + 1) for row in rows[1 if step <= job.RESUME_STEP else 2, step]]
    assert len(lineage) == len(set(lineage)) == job.STEPS * ROWS_A_STEP
    again = [step for attempt, step in rows if attempt == 1 and step > job.RESUME_STEP]
    assert all(sorted(rows[1, step]) == sorted(rows[2, step]) for step in again)


def test_trainer_with_its_text_dataloader(tmp_path: Path) -> None:
    trained(tmp_path, {"name": "text"})
