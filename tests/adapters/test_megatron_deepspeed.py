"""Megatron-DeepSpeed, its own source: its training loop and engines on two ranks, and the documents of its samples."""

import json
from pathlib import Path

import torch

from tests.adapters import job
from tests.adapters.checks import crash_and_resume, logged, run_once, verify
from tests.adapters.megatron_loops import check, exported, needs, prepare, trained
from tests.adapters.texts import SOURCES

pytestmark = needs(  # deepspeed compiles its collectives the first time
    "Megatron-DeepSpeed", "KISEKI_MEGATRON_DEEPSPEED", "deepspeed", timeout_s=900
)


def environment(directory: Path) -> dict[str, str]:
    """Of the job, with the data and DeepSpeed's configuration written."""
    settings = {"train_micro_batch_size_per_gpu": job.MICRO_BATCH, "gradient_accumulation_steps": job.ACCUMULATION,
                "zero_optimization": {"stage": 1}, "steps_per_print": 1000}  # fmt: skip
    (directory / "deepspeed.json").write_text(json.dumps(settings))
    return {**prepare(directory), "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2", "MAX_JOBS": "1"}


def test_zero(tmp_path: Path) -> None:
    """Two data-parallel ranks, the engine without a pipeline."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    crash_and_resume(done, **environment(tmp_path))
    export, log = exported(done.run, 2), logged(done.run / "log")
    check(done, export, "text")
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert set(export) == {key for key in log if key[0] == 2 or key[1] <= last}
    for key, part in export.items():
        assert torch.equal(part.batch["text"][:, :-1], log[key]["input_ids"]), key
        assert part.batch["index"].shape == (job.MICRO_BATCH, 1)  # --return-data-index
        for of_slot, number in zip(part.segments, part.batch["dataset_idx"].tolist(), strict=True):
            assert {segment.source for segment in of_slot} == {SOURCES[number]}
        assert torch.equal(part.batch["text"][:, 1:], log[key]["labels"]), key


def test_pipeline(tmp_path: Path) -> None:
    """Two stages of the pipeline engine: the first writes what it embeds and the last compares with."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    crash_and_resume(done, ENGINE="pipeline", PIPELINE="2", **environment(tmp_path))
    export, log = exported(done.run, 1), logged(done.run / "log")
    check(done, export, "text")
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert set(export) == {key for key in log if key[2] == 0 and (key[0] == 2 or key[1] <= last)}
    for (attempt, step, _, microbatch), part in export.items():
        first, second = (log[attempt, step, stage, microbatch] for stage in (0, 1))
        assert torch.equal(part.batch["text"][:, :-1], first["input_ids"])
        assert torch.equal(part.batch["text"][:, 1:], second["labels"])


def test_tensor_parallel(tmp_path: Path) -> None:
    """Two ranks that share a batch, of which one fetches and writes it."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    run_once(done, TENSOR="2", **environment(tmp_path))
    export, log = exported(done.run, 1), logged(done.run / "log")
    assert set(export) == {key for key in log if key[2] == 0}
    for (attempt, step, _, microbatch), part in export.items():
        for rank in (0, 1):
            assert torch.equal(part.batch["text"][:, :-1], log[attempt, step, rank, microbatch]["input_ids"])
    assert verify(done.run) == 0
