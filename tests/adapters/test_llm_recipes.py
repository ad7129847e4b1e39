"""llm-recipes, its own source: its training loop on two ranks."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from tests.adapters import job
from tests.adapters.checks import Job
from tests.adapters.megatron_loops import check_overflow, needs, prepare, resumed, trained

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
    check_forwards(tmp_path, SHARDING=sharding)


def test_overflow_at_a_save(tmp_path: Path) -> None:
    """fp16: the iteration of the model checkpoint that is resumed from changes no weights."""
    check_overflow(check_forwards(tmp_path, SHARDING="FULL_SHARD", OVERFLOW_AT=str(job.RESUME_STEP)))


def check_forwards(directory: Path, **variables: str) -> Job:
    """Train. Each micro-batch is what the forward was given."""
    compile_helpers()
    done = trained("llm_recipes_job.py", directory / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    older = {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}  # it was written for torch 2.3
    export, log = resumed(done, "input_ids", 2, **variables, **older, **prepare(directory))
    for key, part in export.items():
        assert torch.equal(part.batch["input_ids"], log[key]["input_ids"]), key
        assert torch.equal(part.batch["labels"], log[key]["labels"]), key
    return done
