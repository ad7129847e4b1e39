"""Megatron-DeepSpeed, its own source: its training loop and engines on two ranks, and the documents of its samples."""

import json
import os
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.adapters import job
from tests.adapters.checks import Job, Key, crash_and_resume, logged, verify
from tests.adapters.texts import EOD, SOURCES, VOCAB, all_tokens, check_documents, texts
from tests.train_hooks.torch_fsdp.torchrun import ROOT
from train_hooks.documents.megatron_preprocessing import write_indexed
from train_hooks.export_format.reader import RunReader
from train_hooks.replay import ReplayDataset, ReplayMicrobatch

CHECKOUT = os.environ.get("KISEKI_MEGATRON_DEEPSPEED", "")
pytestmark = [
    pytest.mark.skipif(not CHECKOUT, reason="KISEKI_MEGATRON_DEEPSPEED: the path of a checkout of Megatron-DeepSpeed"),
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="make test-adapters has deepspeed"),
    pytest.mark.timeout(900),  # deepspeed compiles its collectives the first time
]


def prepare(directory: Path) -> dict[str, str]:
    """The data, DeepSpeed's configuration, and the environment of the job."""
    (directory / "data").mkdir()
    for source in SOURCES:
        write_indexed(
            directory / "data" / source, texts(source), lambda text: list(text.encode()), vocab_size=VOCAB,
            end_of_document=EOD,
        )  # fmt: skip
    settings = {"train_micro_batch_size_per_gpu": job.MICRO_BATCH, "gradient_accumulation_steps": job.ACCUMULATION,
                "zero_optimization": {"stage": 1}, "steps_per_print": 1000}  # fmt: skip
    (directory / "deepspeed.json").write_text(json.dumps(settings))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2", "MAX_JOBS": "1"}


def trained(run: Path, rows_a_step: int) -> Job:
    """The job of the test."""
    return Job(
        script=Path(__file__).parent / "megatron_deepspeed_job.py", run=run, last_step=job.STEPS,
        killed_step=job.KILLED_STEP, resume_step=job.RESUME_STEP, rows_a_step=rows_a_step, timeout_s=400,
    )  # fmt: skip


def exported(run: Path, num_ranks: int) -> dict[Key, ReplayMicrobatch]:
    """Every micro-batch of every attempt."""
    found = {}
    for attempt in RunReader(run).attempts():
        number = attempt.info.attempt
        for rank in range(num_ranks):
            for part in ReplayDataset(run, dp_rank=rank, attempt=number):
                if part.addresses[0].attempt == number:
                    found[number, part.global_step, rank, part.microbatch] = part
    return found


def check(done: Job, export: dict[Key, ReplayMicrobatch]) -> None:
    """Steps, order of the data, documents."""
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert done.resume_step <= last < done.killed_step
    steps = {(1, step) for step in range(1, last + 1)}
    steps |= {(2, step) for step in range(done.resume_step + 1, done.last_step + 1)}
    samples: dict[tuple[int, int], list[int | None]] = defaultdict(list)
    for (attempt, step, _, _), part in export.items():
        samples[attempt, step].extend(part.sample_index)
        assert part.batch["index"].shape == (job.MICRO_BATCH, 1)  # --return-data-index
        check_documents(part, "text", all_tokens())
        for of_slot, number in zip(part.segments, part.batch["dataset_idx"].tolist(), strict=True):
            assert {segment.source for segment in of_slot} == {SOURCES[number]}
    assert set(samples) == steps
    for (_, step), found in samples.items():
        size = done.rows_a_step
        assert sorted(found, key=str) == sorted(range((step - 1) * size, step * size), key=str)
    assert RunReader(done.run).attempt(2).info.resume_step == done.resume_step
    assert verify(done.run) == 0


def test_zero(tmp_path: Path) -> None:
    """Two data-parallel ranks, the engine without a pipeline."""
    done = trained(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    crash_and_resume(done, **prepare(tmp_path))
    export, log = exported(done.run, 2), logged(done.run / "log")
    check(done, export)
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert set(export) == {key for key in log if key[0] == 2 or key[1] <= last}
    for key, part in export.items():
        assert torch.equal(part.batch["text"][:, :-1], log[key]["input_ids"]), key
        assert torch.equal(part.batch["text"][:, 1:], log[key]["labels"]), key


def test_pipeline(tmp_path: Path) -> None:
    """Two stages of the pipeline engine: the first writes what it embeds and the last compares with."""
    done = trained(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    crash_and_resume(done, ENGINE="pipeline", PIPELINE="2", **prepare(tmp_path))
    export, log = exported(done.run, 1), logged(done.run / "log")
    check(done, export)
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert set(export) == {key for key in log if key[2] == 0 and (key[0] == 2 or key[1] <= last)}
    for (attempt, step, _, microbatch), part in export.items():
        first, second = (log[attempt, step, stage, microbatch] for stage in (0, 1))
        assert torch.equal(part.batch["text"][:, :-1], first["input_ids"])
        assert torch.equal(part.batch["text"][:, 1:], second["labels"])
