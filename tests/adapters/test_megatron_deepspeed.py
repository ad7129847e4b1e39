"""Megatron-DeepSpeed, its own source: its training loop and engines on two ranks, and the documents of its samples."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.adapters import job
from tests.adapters.checks import (
    Job,
    Key,
    check_matched,
    crash_and_resume,
    logged,
    run_command,
    run_once,
    run_ranks,
    verify,
)
from tests.adapters.data.texts import LENGTH, SOURCES, all_tokens, check_documents
from tests.adapters.megatron_loops import check, check_overflow, exported, needs, prepare, resumed, trained
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.verify.run import verify as verify_export
from train_hooks.replay import ReplayMicrobatch

pytestmark = needs(  # deepspeed compiles its collectives the first time
    "Megatron-DeepSpeed", "KISEKI_MEGATRON_DEEPSPEED", "deepspeed", timeout_s=900
)

OLDER_DEEPSPEED = Path(sys.prefix) / "older-deepspeed"
has_older = pytest.mark.skipif(not OLDER_DEEPSPEED.is_dir(), reason="make test-adapters has deepspeed 0.19.6 beside it")
EASY = (3, 8, 21, 40)  # samples of a curriculum
LENGTHS = (12, 24, LENGTH)  # of a curriculum: how long sequences are
CHANGES = (2, 4)  # the last step of each length but the last


def environment(directory: Path, **more: Any) -> dict[str, str]:
    """Of the job, with the data and DeepSpeed's configuration written. more: of the configuration."""
    settings = {**more, "train_micro_batch_size_per_gpu": job.MICRO_BATCH, "gradient_accumulation_steps": job.ACCUMULATION,
                "zero_optimization": {"stage": 1}, "steps_per_print": 1000}  # fmt: skip
    (directory / "deepspeed.json").write_text(json.dumps(settings))
    return {**prepare(directory), "DS_ACCELERATOR": "cpu", "LOCAL_SIZE": "2", "MAX_JOBS": "1"}


def test_zero(tmp_path: Path) -> None:
    """Two data-parallel ranks, the engine without a pipeline."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    export, log = resumed(done, "text", 2, matched="slice", **environment(tmp_path))
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
    export, log = resumed(
        done, "text", 2, matched="slice", OVERFLOW_AT=str(done.resume_step), **environment(tmp_path, fp16=fp16)
    )
    for key, part in export.items():
        assert torch.equal(part.batch["text"][:, :-1], log[key]["input_ids"]), key
    check_overflow(done)


def test_pipeline(tmp_path: Path) -> None:
    """Two stages of the pipeline engine: the first writes what it embeds and the last compares with."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    export, log = resumed(done, "text", 1, matched="slice", ENGINE="pipeline", PIPELINE="2", **environment(tmp_path))
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
    check_matched(done.run, "slice")
    assert verify(done.run) == 0


def test_ulysses(tmp_path: Path) -> None:
    """Two ranks that are given half of every sequence each, of which one writes it whole."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    export, log = resumed(done, "text", 1, matched="slice", ULYSSES="2", **environment(tmp_path))
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
    check_matched(done.run, "slice")
    assert verify(done.run) == 0


def of_lengths(directory: Path, name: str) -> dict[str, Any]:
    """A curriculum of data efficiency by sequence length: LENGTHS, each from one of the steps in CHANGES on."""
    schedule = {"difficulty": list(LENGTHS), "max_step": list(CHANGES)}
    return curriculum(
        directory, name, clustering_type="single_cluster", min_difficulty=LENGTHS[0], max_difficulty=LENGTHS[-1],
        schedule_config=schedule,
    )  # fmt: skip


def check_cut(done: Job, export: dict[Key, ReplayMicrobatch], log: dict[Key, dict[str, Tensor]]) -> None:
    """Row for row what the model was given; each token in the document named; counts; a span of a short row is found."""
    sources = all_tokens()
    for key, part in export.items():
        assert torch.equal(part.batch["text"][:, :-1], log[key]["input_ids"]), key
        assert torch.equal(part.batch["text"][:, 1:], log[key]["labels"]), key
        check_documents(part, "text", sources)
    assert {part.batch["text"].shape[1] - 1 for part in export.values()} == set(LENGTHS)
    check_matched(done.run, "slice")
    assert verify(done.run) == 0
    attempts = RunReader(done.run).attempts()
    rows = [row for attempt in attempts for frame in attempt.frames(1, 99) for row in attempt.rows(frame)]
    report, lengths = verify_export(done.run), [len(row.tokens) for row in rows]
    assert (report.num_rows, report.num_tokens) == (len(rows), sum(lengths))
    steps = {key[:2] for key in export}  # that of the crash may have the rows of one rank alone
    committed = [len(row.tokens) for row in rows if (row.address.attempt, row.address.global_step) in steps]
    assert sorted(committed) == sorted(part.batch["text"].shape[1] for part in export.values() for _ in part.segments)
    assert run_command("index", str(done.run))[0] == 0
    short = [row for row in rows if row.address.attempt == 2 and len(row.tokens) == LENGTHS[1] + 1][-1]
    ids = ",".join(map(str, short.tokens.tolist()))
    options = ("--min-length", "12", "--limit", "100", "--json")
    code, output = run_command("trace", str(done.run), "--token-ids", ids, *options)
    assert code == 0 and f'"{short.address}"' in output


@pytest.mark.parametrize("name", ["seqlen_truncate", "seqlen_reshape"])
def test_curricula_of_lengths(tmp_path: Path, name: str) -> None:
    """DeepSpeed's loader gives samples, which are cut behind it: their beginnings, or several rows of each."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    settings = environment(tmp_path, **of_lengths(tmp_path, name))
    # with reshaping it counts tokens in fractions, and fails to print them
    crash_and_resume(done, CURRICULUM="1", LOG_EVERY="1000", **settings)
    export, log = exported(done.run, 2), logged(done.run / "log")
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert set(export) == {key for key in log if key[0] == 2 or key[1] <= last}
    check_cut(done, export, log)
    assert all("sample_start" in part.batch for part in export.values() if part.batch["text"].shape[1] <= LENGTH)
    if name == "seqlen_reshape":
        first = [part for key, part in export.items() if key[:2] == (1, 1)]
        places = [
            place
            for part in first
            for place in zip(part.sample_index, part.batch["sample_start"].tolist(), strict=True)
        ]
        num_samples = job.MICRO_BATCH * job.ACCUMULATION * 2
        assert len(set(places)) == len(places) > num_samples == len({sample for sample, _ in places})


def test_a_curriculum_of_lengths_under_the_pipeline_engine(tmp_path: Path) -> None:
    """DeepSpeed hands the cutting to a wrapper of its loader, which never does it: the model is given whole samples."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    run_once(
        done, CURRICULUM="1", ENGINE="pipeline", **environment(tmp_path, **of_lengths(tmp_path, "seqlen_truncate"))
    )
    export, log = exported(done.run, 2), logged(done.run / "log")
    assert set(export) == set(log)
    for key, part in export.items():
        assert torch.equal(part.batch["text"][:, :-1], log[key]["input_ids"]), key
        assert torch.equal(part.batch["text"][:, 1:], log[key]["labels"]), key
        assert log[key]["input_ids"].shape[1] == LENGTH
        check_documents(part, "text", all_tokens())
    check_matched(done.run, "slice")
    assert verify(done.run) == 0


def older(directory: Path) -> dict[str, str]:
    """Of a job under the curriculum that cuts in the model, with the last deepspeed that has it."""
    learning = {
        "enabled": True, "curriculum_type": "seqlen", "min_difficulty": LENGTHS[0], "max_difficulty": LENGTHS[-1],
        "schedule_type": "fixed_discrete", "schedule_config": {"difficulty": list(LENGTHS), "max_step": list(CHANGES)},
    }  # fmt: skip
    variables = environment(directory, curriculum_learning=learning)
    return {
        **variables,
        "OLDER_CURRICULUM": "1",
        "PYTHONPATH": f"{OLDER_DEEPSPEED}{os.pathsep}{variables['PYTHONPATH']}",
    }


@has_older
def test_curriculum_in_the_model(tmp_path: Path) -> None:
    """The engine says with each forward how long the sequences are, and the model cuts them."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    crash_and_resume(done, **older(tmp_path))
    export, log = exported(done.run, 2), logged(done.run / "log")
    check(done, export, "text")
    check_cut(done, export, log)


@has_older
def test_curriculum_in_the_model_under_the_pipeline_engine(tmp_path: Path) -> None:
    """The function that the engine calls with each micro-batch cuts it: the first stage embeds, the last one compares."""
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    crash_and_resume(done, ENGINE="pipeline", PIPELINE="2", **older(tmp_path))
    export, log = exported(done.run, 1), logged(done.run / "log")
    check(done, export, "text")
    stages = {key: {**log[key], "labels": log[(*key[:2], 1, key[3])]["labels"]} for key in export}
    check_cut(done, export, stages)


@has_older
def test_curriculum_in_the_model_of_parts_of_sequences_is_refused(tmp_path: Path) -> None:
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", 0)
    for code, output in run_ranks(done, ULYSSES="2", **older(tmp_path)):
        assert (
            code == 1 and "InputError: expected every rank to be given whole sequences under the curriculum" in output
        )
    assert not (done.run / "export").exists()


@pytest.mark.parametrize("name", ["seqlen_truncate", "seqlen_reshape"])
def test_curricula_of_lengths_that_are_not_watched_are_refused(tmp_path: Path, name: str) -> None:
    done = trained("megatron_deepspeed_job.py", tmp_path / "run", 0)
    settings = environment(tmp_path, **of_lengths(tmp_path, name))
    for code, output in run_ranks(done, CURRICULUM="1", UNWATCHED="1", **settings):
        assert code == 1 and "InputError: expected data_post_process=export.data_post_process(" in output
        assert f"the curriculum {name} " in output
    assert not (done.run / "export").exists()
