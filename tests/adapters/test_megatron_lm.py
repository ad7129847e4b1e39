"""Megatron-LM, its own source: its training loop on two ranks."""

import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor

from tests.adapters import job
from tests.adapters.checks import Job, Key, crash_and_resume, logged, verify
from tests.adapters.megatron_loops import check, check_overflow, exported, needs, prepare, trained
from tests.adapters.texts import all_tokens, check_documents
from train_hooks.replay import ReplayMicrobatch

pytestmark = needs("Megatron-LM, core_v0.16.1", "KISEKI_MEGATRON_LM", "megatron")


def environment(directory: Path) -> dict[str, str]:
    """Of the job."""
    return {**prepare(directory), "TORCHDYNAMO_DISABLE": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}


def training(run: Path, rows_a_step: int) -> Job:
    """The job of the test. LLM-jp's fork saves after each of the first ten iterations, whatever `--save-interval`."""
    source = Path(os.environ["KISEKI_MEGATRON_LM"]) / "megatron" / "training" / "training.py"
    done = trained("megatron_lm_job.py", run, rows_a_step)
    is_fork = "def is_save_iteration" in source.read_text(encoding="utf-8")
    return dataclasses.replace(done, resume_step=done.killed_step - 1) if is_fork else done


def check_forwards(export: dict[Key, ReplayMicrobatch], log: dict[Key, dict[str, Tensor]]) -> None:
    """Each micro-batch of a step that was over, on each rank, is what the forward was given."""
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert set(export) == {key for key in log if key[0] == 2 or key[1] <= last}
    for key, part in export.items():
        assert torch.equal(part.batch["tokens"], log[key]["input_ids"]), key
        assert torch.equal(part.batch["labels"], log[key]["labels"]), key


def test_data_parallel(tmp_path: Path) -> None:
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    crash_and_resume(done, **environment(tmp_path))
    export = exported(done.run, 2)
    check(done, export, "tokens")
    check_forwards(export, logged(done.run / "log"))


def test_external_loader(tmp_path: Path) -> None:
    """`--dataloader-type external`: a loader of the test, whose ranks take the samples by turns."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    crash_and_resume(done, LOADER="external", **environment(tmp_path))
    export = exported(done.run, 2)
    check(done, export, "tokens")
    check_forwards(export, logged(done.run / "log"))
    assert all(index is not None and index % 2 == key[2] for key, part in export.items() for index in part.sample_index)


def test_cyclic_loader(tmp_path: Path) -> None:
    """`--dataloader-type cyclic`: a random order, which a resume goes on with."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    crash_and_resume(done, LOADER="cyclic", **environment(tmp_path))
    export = exported(done.run, 2)
    check_forwards(export, logged(done.run / "log"))
    sources = all_tokens()
    lineage: list[int | None] = []
    for (attempt, step, _, _), part in export.items():
        check_documents(part, "tokens", sources)
        if attempt == 2 or step <= done.resume_step:
            lineage.extend(part.sample_index)
    assert len(lineage) == len(set(lineage)) == done.last_step * done.rows_a_step
    assert set(export[1, 1, 0, 0].sample_index) != {0, 1}
    assert verify(done.run) == 0


def test_pipeline(tmp_path: Path) -> None:
    """Two stages, which wait for one another: the first is given tokens, the last labels."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    crash_and_resume(done, PIPELINE="2", **environment(tmp_path))
    export, log = exported(done.run, 1), logged(done.run / "log")
    check(done, export, "tokens")
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert set(export) == {key for key in log if key[2] == 0 and (key[0] == 2 or key[1] <= last)}
    for (attempt, step, _, microbatch), part in export.items():
        first, second = (log[attempt, step, stage, microbatch] for stage in (0, 1))
        assert torch.equal(part.batch["tokens"], first["input_ids"])
        assert torch.equal(part.batch["labels"], second["labels"])


def test_tensor_parallel(tmp_path: Path) -> None:
    """Two ranks that share a batch, of which one fetches and writes it."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    crash_and_resume(done, TENSOR="2", **environment(tmp_path))
    export, log = exported(done.run, 1), logged(done.run / "log")
    check(done, export, "tokens")
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert set(export) == {key for key in log if key[2] == 0 and (key[0] == 2 or key[1] <= last)}
    for (attempt, step, _, microbatch), part in export.items():
        for rank in (0, 1):
            seen = log[attempt, step, rank, microbatch]
            assert torch.equal(part.batch["tokens"], seen["input_ids"])
            assert torch.equal(part.batch["labels"], seen["labels"])


def test_overflow_at_a_save(tmp_path: Path) -> None:
    """fp16: the iteration of the model checkpoint that is resumed from changes no weights."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    crash_and_resume(done, OVERFLOW_AT=str(done.resume_step), **environment(tmp_path))
    export = exported(done.run, 2)
    check(done, export, "tokens")
    check_forwards(export, logged(done.run / "log"))
    check_overflow(done)
