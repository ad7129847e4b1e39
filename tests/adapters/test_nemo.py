"""NeMo 2, the real package: its `llm.pretrain` on two ranks."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.adapters import job
from tests.adapters.checks import metrics_of
from tests.adapters.megatron_loops import check_forwards, prepare, resumed, trained
from train_hooks.export_format.errors import InputError

pytestmark = [
    pytest.mark.skipif(find_spec("nemo") is None, reason="make test-adapters has nemo"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(900),
]


def environment(directory: Path) -> dict[str, str]:
    """Of the job."""
    return {**prepare(directory), "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TORCHELASTIC_RUN_ID": "test"}


def test_data_parallel(tmp_path: Path) -> None:
    """A blend of three, accumulation, workers, evaluation, a crash, a resume."""
    done = trained("nemo_job.py", tmp_path / "run", job.MICRO_BATCH * job.ACCUMULATION * 2)
    check_forwards(*resumed(done, "tokens", 2, **environment(tmp_path)))
    assert all(metrics_of(done.run)[step]["loss"] > 0 for step in range(1, job.STEPS + 1))


def test_what_is_not_known_is_refused() -> None:
    """Other strategies, virtual pipeline stages, fine-tuning, a global batch at once."""
    from nemo.lightning.pytorch.strategies import MegatronStrategy

    from train_hooks.adapters.nemo import NemoExport

    def refused(strategy: Any, message: str, **data: Any) -> None:
        trainer: Any = SimpleNamespace(strategy=strategy, datamodule=SimpleNamespace(**data))
        with pytest.raises(InputError, match=message):
            NemoExport("nowhere").setup(trainer, trainer, "fit")

    strategy: Any = object.__new__(MegatronStrategy)
    strategy.virtual_pipeline_model_parallel_size = 2
    refused(object(), "expected MegatronStrategy, found object")
    refused(strategy, "expected no virtual pipeline stages")
    strategy.virtual_pipeline_model_parallel_size = None
    single, whole = (SimpleNamespace(dataloader_type=kind) for kind in ("single", "batch"))
    refused(strategy, "expected a PreTrainingDataModule")
    refused(
        strategy, "expected a PreTrainingDataModule", _train_ds=SimpleNamespace(collate_fn=list), data_sampler=single
    )
    refused(strategy, "expected a PreTrainingDataModule", _train_ds=[0], data_sampler=whole)
    refused(strategy, "expected a GPTDataset or a BlendedDataset", _train_ds=[0], data_sampler=single)
