"""Megatron-Bridge, the real package: its `pretrain` on two ranks."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.adapters import job
from tests.adapters.checks import check_matched, logged, metrics_of, run_once
from tests.adapters.jobs.without_bridge_packages import without_packages
from tests.adapters.megatron_loops import check_forwards, check_stages, exported, prepare, resumed, trained
from train_hooks.export_format.errors import InputError

pytestmark = [
    pytest.mark.skipif(
        find_spec("megatron") is None or find_spec("megatron.bridge") is None,
        reason="make test-adapters has megatron-bridge",
    ),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(900),
]


def environment(directory: Path) -> dict[str, str]:
    """Of the job."""
    return {**prepare(directory), "TORCHDYNAMO_DISABLE": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1", "HF_HUB_OFFLINE": "1"}


def test_data_parallel(tmp_path: Path) -> None:
    """A blend of three, accumulation, workers, evaluation, a crash, a resume."""
    done = trained("megatron_bridge_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    check_forwards(*resumed(done, "tokens", 2, **environment(tmp_path)))
    assert all(metrics_of(done.run)[step]["loss"] > 0 for step in range(1, job.STEPS + 1))


def test_pipeline(tmp_path: Path) -> None:
    """Two stages, which wait for one another."""
    done = trained("megatron_bridge_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    check_stages(*resumed(done, "tokens", 1, PIPELINE="2", **environment(tmp_path)))


def test_tensor_parallel(tmp_path: Path) -> None:
    """Two ranks are fed the same, and one writes it."""
    done = trained("megatron_bridge_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION)
    run_once(done, TENSOR="2", **environment(tmp_path))
    export, log = exported(done.run, 1), logged(done.run / "log")
    assert len(export) == job.STEPS * job.ACCUMULATION and len(log) == 2 * len(export)
    check_forwards(export, log, ranks_a_writer=2)
    check_matched(done.run, "whole")


def test_fine_tuning_is_refused() -> None:
    """Its datasets, which have a collate function of their own, do not say which documents they pack."""
    without_packages()
    from train_hooks.adapters.megatron_bridge import MegatronBridgeExport

    tuning = SimpleNamespace(collate_fn=list)
    config = SimpleNamespace(dataset=SimpleNamespace(build_datasets=lambda _: (tuning, None, None)))
    MegatronBridgeExport("nowhere", config)
    with pytest.raises(InputError, match="expected a dataset for pre-training, found SimpleNamespace"):
        config.dataset.build_datasets(None)
