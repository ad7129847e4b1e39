"""Megatron-LM, its own source: its training loop on two ranks."""

import dataclasses
import os
from pathlib import Path

import torch

from tests.adapters import job
from tests.adapters.checks import Job, check_matched, check_seen, crash_and_resume, logged, run_once, verify
from tests.adapters.data.texts import all_tokens, check_documents
from tests.adapters.megatron_loops import (
    check,
    check_forwards,
    check_overflow,
    check_stages,
    exported,
    needs,
    prepare,
    resumed,
    trained,
)

pytestmark = needs("Megatron-LM, core_v0.16.1", "KISEKI_MEGATRON_LM", "megatron")


def environment(directory: Path) -> dict[str, str]:
    """Of the job."""
    return {**prepare(directory), "TORCHDYNAMO_DISABLE": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}


def is_fork() -> bool:
    """Whether it is LLM-jp's, which saves by a rule of its own."""
    source = Path(os.environ["KISEKI_MEGATRON_LM"]) / "megatron" / "training" / "training.py"
    return "def is_save_iteration" in source.read_text(encoding="utf-8")


def training(run: Path, rows_a_step: int, num_ranks: int = 2) -> Job:
    """The job of the test. LLM-jp's fork saves after each of the first ten iterations, whatever `--save-interval`."""
    done = trained("megatron_lm_job.py", run, rows_a_step)
    return dataclasses.replace(
        done, num_ranks=num_ranks, resume_step=done.killed_step - 1 if is_fork() else done.resume_step
    )


def test_data_parallel(tmp_path: Path) -> None:
    """With distributed checkpoints, for which the fork wants an older numpy; in the others one data-parallel rank writes."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    checkpoints = "torch" if is_fork() else "torch_dist"
    check_forwards(*resumed(done, "tokens", 2, FORMAT=checkpoints, **environment(tmp_path)))
    check_seen(done.run, "tokens", "labels", "loss_mask", "attention_mask", "position_ids")


def test_external_loader(tmp_path: Path) -> None:
    """`--dataloader-type external`: a loader of the test, whose ranks take the samples by turns."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    export, log = resumed(done, "tokens", 2, LOADER="external", **environment(tmp_path))
    check_forwards(export, log)
    assert all(index is not None and index % 2 == key[2] for key, part in export.items() for index in part.sample_index)


def test_cyclic_loader(tmp_path: Path) -> None:
    """`--dataloader-type cyclic`: a random order, which a resume goes on with."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    crash_and_resume(done, LOADER="cyclic", **environment(tmp_path))
    export, log = exported(done.run, 2), logged(done.run / "log")
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert set(export) == {key for key in log if key[0] == 2 or key[1] <= last}
    check_forwards(export, log)
    sources = all_tokens()
    lineage: list[int | None] = []
    for (attempt, step, _, _), part in export.items():
        check_documents(part, "tokens", sources)
        if attempt == 2 or step <= done.resume_step:
            lineage.extend(part.sample_index)
    assert len(lineage) == len(set(lineage)) == done.last_step * done.rows_a_step
    assert set(export[1, 1, 0, 0].sample_index) != {0, 1}
    check_matched(done.run, "whole")
    assert verify(done.run) == 0


def test_pipeline(tmp_path: Path) -> None:
    """Two stages, which wait for one another."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    check_stages(*resumed(done, "tokens", 1, PIPELINE="2", **environment(tmp_path)))
    check_seen(done.run, "tokens", "labels", "loss_mask", "attention_mask", "position_ids")


def test_tensor_parallel(tmp_path: Path) -> None:
    """Two ranks that share a batch, of which one fetches and writes it."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    export, log = resumed(done, "tokens", 1, TENSOR="2", **environment(tmp_path))
    check_forwards(export, log, ranks_a_writer=2)


def test_overflow_at_a_save(tmp_path: Path) -> None:
    """fp16: the iteration of the model checkpoint that is resumed from changes no weights."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    check_forwards(*resumed(done, "tokens", 2, OVERFLOW_AT=str(done.resume_step), **environment(tmp_path)))
    check_overflow(done)


def test_a_save_at_another_time(tmp_path: Path) -> None:
    """`--exit-interval` saves and ends where no `--save-interval` does; the next start goes on from there."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    done, variables = dataclasses.replace(done, resume_step=4), environment(tmp_path)
    run_once(done, EXIT_AT="4", **variables)
    run_once(done, **variables)
    export, log = exported(done.run, 2), logged(done.run / "log")
    assert set(export) == set(log)
    check(done, export, "tokens")
    check_forwards(export, log)
    check_matched(done.run, "whole")


def test_data_and_tensor_parallel(tmp_path: Path) -> None:
    """Two data-parallel ranks of two tensor-parallel ones each, which share a batch, with the distributed optimizer."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2, num_ranks=4)
    variables = {"TENSOR": "2", "DISTRIBUTED_OPTIMIZER": "1", **environment(tmp_path)}
    export, log = resumed(done, "tokens", 2, **variables)
    assert len({rank for _, _, rank, _ in log}) == 4
    check_forwards(export, log, ranks_a_writer=2)


def test_context_parallel(tmp_path: Path) -> None:
    """Two ranks that are given two of four parts of every sequence each, of which one writes it whole."""
    done = training(tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    export, log = resumed(done, "tokens", 1, matched="slice", CONTEXT="2", **environment(tmp_path))
    for (attempt, step, _, microbatch), part in export.items():
        first, second = (log[attempt, step, rank, microbatch] for rank in (0, 1))
        for name, seen in (("tokens", "input_ids"), ("labels", "labels")):
            parts = [*first[seen].chunk(2, 1), *second[seen].chunk(2, 1)]
            assert torch.equal(part.batch[name], torch.cat([parts[place] for place in (0, 2, 3, 1)], 1))
