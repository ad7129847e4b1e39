"""A rank of a real OLMo-core training on two ranks: FSDP, micro-batches, loader workers, a dry run, a skipped step, resume."""

from typing import Any

import torch
from olmo_core.data import DataCollator, NumpyDataLoaderBase
from olmo_core.distributed.parallel import DataParallelType
from olmo_core.nn.transformer import TransformerConfig
from olmo_core.optim import AdamWConfig
from olmo_core.train import Duration, TrainerConfig, prepare_training_environment, teardown_training_environment
from olmo_core.train.callbacks import CheckpointerCallback
from olmo_core.train.common import StepSkipRange
from olmo_core.train.train_module.transformer import TransformerDataParallelConfig, TransformerTrainModule

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.olmo_data import dataset_of
from tests.adapters.data.texts import LENGTH, VOCAB
from tests.adapters.job import ACCUMULATION, MICRO_BATCH, RANKS, SAVE_EVERY, STEPS, WORKERS, kill_at, rank, run_dir
from train_hooks.adapters.olmo_core import ExportCallback

SKIPPED_STEP = 7


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    prepare_training_environment(seed=1, backend="gloo", shared_filesystem=True)
    run = run_dir()
    model = TransformerConfig.llama_like(d_model=32, vocab_size=VOCAB + 63, n_layers=2, n_heads=2).build(
        init_device="cpu"
    )
    module = TransformerTrainModule(
        model=model, optim=AdamWConfig(lr=1e-3), rank_microbatch_size=MICRO_BATCH * LENGTH, max_sequence_length=LENGTH,
        dp_config=TransformerDataParallelConfig(name=DataParallelType.fsdp), max_grad_norm=1.0, device=torch.device("cpu"),
    )  # fmt: skip
    dataset = dataset_of(run.parent / "data")
    loader = NumpyDataLoaderBase.wrap_numpy_dataset(
        dataset, global_batch_size=MICRO_BATCH * ACCUMULATION * RANKS * LENGTH, collator=DataCollator(pad_token_id=0),
        work_dir=str(run.parent / "work"), dp_world_size=RANKS, dp_rank=rank(), fs_local_rank=rank(), num_workers=WORKERS,
        seed=3,
    )  # fmt: skip
    export = ExportCallback(
        run, corpus="corpus", sequence_length=LENGTH, vocab_size=VOCAB, config={"trainer": "olmo-core"}
    )
    trainer: Any = TrainerConfig(
        save_folder=str(run / "checkpoints"), max_duration=Duration.steps(STEPS), metrics_collect_interval=1,
        steps_to_skip=[StepSkipRange(start=SKIPPED_STEP, stop=SKIPPED_STEP + 1)],
    ).with_callback("checkpointer", CheckpointerCallback(save_interval=SAVE_EVERY)).with_callback(
        "kiseki", export
    ).build(module, loader)  # fmt: skip
    ConsumedLog(module.model, run / "log", rank(), lambda: trainer.global_step - 1, kill_at=kill_at())
    trainer.fit()
    teardown_training_environment()


if __name__ == "__main__":
    main()
