"""Real jobs of several ranks: what each rank's forwards got is what the export says, byte for byte."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train_hooks.hook import meshes_job, wrappers_job
from tests.train_hooks.hook.torchrun import run
from tests.train_hooks.hook.toy import exported, microbatch
from train_hooks.export_format.reading.reader import RunReader

Key = tuple[int, int, int]


def _same(found: dict[Key, Tensor], expected: dict[Key, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def _input_ids(run_dir: Path) -> dict[Key, Tensor]:
    return {key: part.batch["input_ids"] for key, part in exported(run_dir).items()}


@pytest.mark.job
def test_fsdp2_fsdp1_and_ddp(tmp_path: Path) -> None:
    run(Path(wrappers_job.__file__), [tmp_path], num_ranks=2)
    for name in ("fsdp2", "fsdp1", "ddp"):
        logs = [torch.load(tmp_path / f"{name}-rank{rank}.pt") for rank in range(2)]
        expected = {(step, rank, index): ids for rank, log in enumerate(logs) for step, index, ids in log}
        assert len(expected) == 2 * wrappers_job.STEPS * wrappers_job.ACCUMULATION
        assert _same(_input_ids(tmp_path / name), expected), name
        for (step, rank, index), part in exported(tmp_path / name).items():
            whole = microbatch(((step - 1) * wrappers_job.ACCUMULATION + index) * 2 + rank, documents=True)
            assert part.sample_index == tuple(whole["sample_index"].tolist())
            assert part.segments == tuple(map(tuple, whole["segments"]))
            assert torch.equal(part.batch["labels"], whole["labels"])


@pytest.mark.job
def test_elections_on_hsdp_and_tensor_parallel_meshes(tmp_path: Path) -> None:
    run(Path(meshes_job.__file__), [tmp_path], num_ranks=4)
    for name, num_writers in (("hsdp", 4), ("tp", 2), ("tp-found", 2)):
        logs = [torch.load(tmp_path / f"{name}-rank{rank}.pt") for rank in range(4)]
        expected = {(step, dp_rank, 0): ids for log in logs for dp_rank, step, ids in log}
        assert len(expected) == num_writers * meshes_job.STEPS
        assert RunReader(tmp_path / name).attempt(1).info.num_writers == num_writers
        assert _same(_input_ids(tmp_path / name), expected), name
