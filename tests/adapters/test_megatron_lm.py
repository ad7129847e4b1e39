"""Megatron-LM, its own source: its training loop on two ranks."""

from pathlib import Path

import torch

from tests.adapters import job
from tests.adapters.checks import crash_and_resume, logged
from tests.adapters.megatron_loops import check, exported, needs, prepare, trained

pytestmark = needs("Megatron-LM, core_v0.16.1", "KISEKI_MEGATRON_LM", "megatron")


def environment(directory: Path) -> dict[str, str]:
    """Of the job."""
    return {**prepare(directory), "TORCHDYNAMO_DISABLE": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}


def test_data_parallel(tmp_path: Path) -> None:
    done = trained("megatron_lm_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    crash_and_resume(done, **environment(tmp_path))
    export, log = exported(done.run, 2), logged(done.run / "log")
    check(done, export, "tokens")
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert set(export) == {key for key in log if key[0] == 2 or key[1] <= last}
    for key, part in export.items():
        assert torch.equal(part.batch["tokens"], log[key]["input_ids"]), key
        assert torch.equal(part.batch["labels"], log[key]["labels"]), key


def test_pipeline(tmp_path: Path) -> None:
    """Two stages, which wait for one another: the first is given tokens, the last labels."""
    done = trained("megatron_lm_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    crash_and_resume(done, PIPELINE="2", **environment(tmp_path))
    export, log = exported(done.run, 1), logged(done.run / "log")
    check(done, export, "tokens")
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert set(export) == {key for key in log if key[2] == 0 and (key[0] == 2 or key[1] <= last)}
    for (attempt, step, _, microbatch), part in export.items():
        first, second = (log[attempt, step, stage, microbatch] for stage in (0, 1))
        assert torch.equal(part.batch["tokens"], first["input_ids"])
        assert torch.equal(part.batch["labels"], second["labels"])
