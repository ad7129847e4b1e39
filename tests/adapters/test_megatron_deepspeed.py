"""Megatron-DeepSpeed, its own source: its training loop and engines on two ranks, and the documents of its samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.adapters import job
from tests.adapters.checks import crash_and_resume, logged, run_once, run_ranks, verify
from tests.adapters.megatron_loops import check_overflow, exported, needs, prepare, resumed, trained
from tests.adapters.texts import SOURCES, all_tokens, check_documents

pytestmark = needs(  # deepspeed compiles its collectives the first time
    "Megatron-DeepSpeed", "KISEKI_MEGATRON_DEEPSPEED", "deepspeed", timeout_s=900
)


EASY = (3, 8, 21, 40)  # samples of a curriculum


def environment(directory: Path, **more: Any) -> dict[str, str]:
    """Of the job, with the data and DeepSpeed's configuration written. more: of the configuration."""
    settings = {**more, "train_micro_batch_size_per_gpu": job.MICRO_BATCH, "gradient_accumulation_steps": job.ACCUMULATION,
                "zero_optimization": {"stage": 1}, "steps_per_print": 1000}  # fmt: skip
    (directory / "deepspeed.json").write_text(json.dumps(settings))
    return {**prepare(directory), "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2", "MAX_JOBS": "1"}


def test_zero(tmp_path: Path) -> None:
    """Two data-parallel ranks, the engine without a pipeline."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    export, log = resumed(done, "text", 2, **environment(tmp_path))
    for key, part in export.items():
        assert torch.equal(part.batch["text"][:, :-1], log[key]["input_ids"]), key
        assert part.batch["index"].shape == (job.MICRO_BATCH, 1)  # --return-data-index
        for of_slot, number in zip(part.segments, part.batch["dataset_idx"].tolist(), strict=True):
            assert {segment.source for segment in of_slot} == {SOURCES[number]}
        assert torch.equal(part.batch["text"][:, 1:], log[key]["labels"]), key


def test_overflow_at_a_save(tmp_path: Path) -> None:
    """fp16: the iteration of the model checkpoint that is resumed from changes no weights."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    fp16 = {"enabled": True, "initial_scale_power": 10}
    export, log = resumed(done, "text", 2, OVERFLOW_AT=str(done.resume_step), **environment(tmp_path, fp16=fp16))
    for key, part in export.items():
        assert torch.equal(part.batch["text"][:, :-1], log[key]["input_ids"]), key
    check_overflow(done)


def test_pipeline(tmp_path: Path) -> None:
    """Two stages of the pipeline engine: the first writes what it embeds and the last compares with."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    export, log = resumed(done, "text", 1, ENGINE="pipeline", PIPELINE="2", **environment(tmp_path))
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


def test_ulysses(tmp_path: Path) -> None:
    """Two ranks that are given half of every sequence each, of which one writes it whole."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    export, log = resumed(done, "text", 1, ULYSSES="2", **environment(tmp_path))
    for (attempt, step, _, microbatch), part in export.items():
        halves = [log[attempt, step, rank, microbatch] for rank in (0, 1)]
        assert torch.equal(part.batch["text"][:, :-1], torch.cat([half["input_ids"] for half in halves], 1))
        assert torch.equal(part.batch["text"][:, 1:], torch.cat([half["labels"] for half in halves], 1))


def curriculum(directory: Path, name: str, **metric: Any) -> dict[str, Any]:
    """A data-efficiency curriculum of DeepSpeed, by one metric with the values 1 and 2, of which 2 begins with step 5."""
    schedule = {"difficulty_type": "value", "min_difficulty": 1, "max_difficulty": 2, "schedule_type": "fixed_discrete",
                "schedule_config": {"difficulty": [1, 2], "max_step": [4]}}  # fmt: skip
    learning = {
        "enabled": True, "data_cluster_path": str(directory / "clusters"), "curriculum_metrics": {name: {**schedule, **metric}}
    }  # fmt: skip
    return {"data_efficiency": {"enabled": True, "data_sampling": {"enabled": True, "curriculum_learning": learning}}}


def easy_and_hard(directory: Path) -> dict[str, str]:
    """What DeepSpeed's analysis of the data writes: values, and the samples that have them. Four samples are easy."""
    from deepspeed.runtime.data_pipeline.data_sampling.utils import (
        close_mmap_dataset_builder,
        create_mmap_dataset_builder,
    )

    rest = [number for number in range(64) if number not in EASY]
    paths = {}
    for name, rows in (("index_to_metric_path", [[1], [2]]), ("index_to_sample_path", [list(EASY), rest])):
        paths[name] = str(directory / name)
        builder = create_mmap_dataset_builder(paths[name], np.int64)
        for row in rows:
            builder.add_item_numpy(np.array(row, np.int64))
        close_mmap_dataset_builder(builder, paths[name])
    return paths


def test_curriculum_of_samples(tmp_path: Path) -> None:
    """DeepSpeed's sampler repeats four samples until step 4, some of them as the same micro-batch twice in a step."""
    settings = curriculum(tmp_path, "oddity", clustering_type="schedule_based", **easy_and_hard(tmp_path))
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    crash_and_resume(done, CURRICULUM="1", **environment(tmp_path, **settings))
    export, log = exported(done.run, 2), logged(done.run / "log")
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert set(export) == {key for key in log if key[0] == 2 or key[1] <= last}
    sources = all_tokens()
    for key, part in export.items():
        assert torch.equal(part.batch["text"][:, :-1], log[key]["input_ids"]), key
        assert torch.equal(part.batch["text"][:, 1:], log[key]["labels"]), key
        check_documents(part, "text", sources)
    first = [part for key, part in export.items() if key[:2] == (1, 1)]
    assert {index for part in first for index in part.sample_index} <= set(EASY)
    assert any(set(part.sample_index).isdisjoint(EASY) for part in export.values())
    repeated = [key for key, part in export.items() if key[3] and part.sample_index == export[*key[:3], 0].sample_index]
    assert repeated
    assert verify(done.run) == 0


@pytest.mark.parametrize("name", ["seqlen_truncate", "seqlen_reshape"])
def test_curricula_of_lengths_are_refused(tmp_path: Path, name: str) -> None:
    settings = curriculum(tmp_path, name, clustering_type="single_cluster")
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", 0)
    for code, output in run_ranks(done, CURRICULUM="1", **environment(tmp_path, **settings)):
        assert code == 1 and f"InputError: expected sequences of one length, found the curriculum {name} " in output
    assert not (done.run / "export").exists()
