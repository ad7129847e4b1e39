"""llm-recipes, its own source: its training loop on two ranks."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from tests.adapters import job
from tests.adapters.checks import Job, crash_and_resume, logged
from tests.adapters.megatron_loops import check, check_overflow, exported, needs, prepare, trained

pytestmark = needs("llm-recipes, v1.0.1", "KISEKI_LLM_RECIPES", "transformers")


def compile_helpers() -> None:
    """What its install.sh does, for this Python."""
    includes = subprocess.run(
        [sys.executable, "-m", "pybind11", "--includes"], check=True, capture_output=True, text=True
    ).stdout.strip()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    directory = Path(os.environ["KISEKI_LLM_RECIPES"]) / "megatron_lm" / "megatron" / "core" / "datasets"
    subprocess.run(
        ["make", "-C", directory, f"LIBEXT={suffix}", f"CPPFLAGS={includes}"], check=True, capture_output=True
    )


@pytest.mark.parametrize("sharding", ["NO_SHARD", "FULL_SHARD"])
def test_continual_pretraining(tmp_path: Path, sharding: str) -> None:
    """FSDP, accumulation, evaluation, a crash and a resume: rows are what the model's forward was given."""
    check_forwards(continued(tmp_path, SHARDING=sharding))


def test_overflow_at_a_save(tmp_path: Path) -> None:
    """fp16: the iteration of the model checkpoint that is resumed from changes no weights."""
    done = continued(tmp_path, SHARDING="FULL_SHARD", OVERFLOW_AT=str(job.RESUME_STEP))
    check_forwards(done)
    check_overflow(done)


def continued(directory: Path, **variables: str) -> Job:
    """A training that crashed and was resumed."""
    compile_helpers()
    done = trained("llm_recipes_job.py", directory / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    older = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}  # it was written for torch 2.3
    crash_and_resume(done, **variables, **older, **prepare(directory))
    return done


def check_forwards(done: Job) -> None:
    """Each micro-batch of a step that was over is what the forward was given."""
    export, log = exported(done.run, 2), logged(done.run / "log")
    check(done, export, "input_ids")
    last = max(step for attempt, step, _, _ in export if attempt == 1)
    assert set(export) == {key for key in log if key[0] == 2 or key[1] <= last}
    for key, part in export.items():
        assert torch.equal(part.batch["input_ids"], log[key]["input_ids"]), key
        assert torch.equal(part.batch["labels"], log[key]["labels"]), key
