"""A rank of Megatron-Bridge's own `pretrain`, on a CPU: its configuration, data, GPT model, loop, evaluation, checkpoints.

Stands in for the GPU (`without_gpu`), for NCCL by gloo, and for what is imported and not used (`without_bridge_packages`).
"""

import logging
import os
import warnings
from typing import Any

import torch

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.texts import LENGTH, SOURCES, VOCAB
from tests.adapters.job import (
    ACCUMULATION,
    MICRO_BATCH,
    SAVE_EVERY,
    STEPS,
    WORKERS,
    die_together,
    kill_at,
    rank,
    run_dir,
)
from tests.adapters.jobs.without_bridge_packages import without_packages
from tests.adapters.jobs.without_gpu import without_gpu

RUN = run_dir()
PIPELINE, TENSOR = (int(os.environ.get(name, "1")) for name in ("PIPELINE", "TENSOR"))


def config() -> Any:
    """Of `pretrain`."""
    from megatron.bridge.models.gpt_provider import GPTModelProvider, local_layer_spec
    from megatron.bridge.training import config as settings

    blend = [each for source in SOURCES for each in ("1", str(RUN.parent / "data" / source))]
    checkpoints = str(RUN / "checkpoints")
    model = GPTModelProvider(
        num_layers=2, hidden_size=32, num_attention_heads=2, seq_length=LENGTH, transformer_layer_spec=local_layer_spec,
        tensor_model_parallel_size=TENSOR, pipeline_model_parallel_size=PIPELINE, pipeline_dtype=torch.float32,
        use_cpu_initialization=True, gradient_accumulation_fusion=False, masked_softmax_fusion=False,
        persist_layer_norm=False, bias_dropout_fusion=False, bias_activation_fusion=False, apply_rope_fusion=False,
        cross_entropy_loss_fusion=False, make_vocab_size_divisible_by=1, params_dtype=torch.float32,
    )  # fmt: skip
    return settings.ConfigContainer(
        model=model,
        train=settings.TrainingConfig(
            train_iters=STEPS, micro_batch_size=MICRO_BATCH,
            global_batch_size=ACCUMULATION * MICRO_BATCH * 2 // (PIPELINE * TENSOR),
        ),
        validation=settings.ValidationConfig(eval_interval=SAVE_EVERY, eval_iters=1),
        optimizer=settings.OptimizerConfig(
            optimizer="adam", lr=1e-3, min_lr=1e-4, clip_grad=0.0, use_distributed_optimizer=False
        ),
        scheduler=settings.SchedulerConfig(
            lr_decay_style="cosine", lr_warmup_iters=1, lr_decay_iters=STEPS, start_weight_decay=0.01, end_weight_decay=0.01
        ),
        ddp=settings.DistributedDataParallelConfig(use_distributed_optimizer=False, overlap_grad_reduce=False),
        dataset=settings.GPTDatasetConfig(
            random_seed=7, seq_length=LENGTH, data_path=blend, split="90,10,0", path_to_cache=str(RUN.parent / "cache"),
            reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=True, num_dataset_builder_threads=1,
            dataloader_type="single", num_workers=WORKERS,
        ),
        logger=settings.LoggerConfig(log_interval=1),
        tokenizer=settings.TokenizerConfig(tokenizer_type="NullTokenizer", vocab_size=VOCAB),
        checkpoint=settings.CheckpointConfig(
            save_interval=SAVE_EVERY, save=checkpoints, load=checkpoints, ckpt_format="torch_dist", async_save=False
        ),
        dist=settings.DistributedInitConfig(distributed_backend="gloo"),
        rng=settings.RNGConfig(seed=1),
    )  # fmt: skip


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    die_together()
    logging.disable(logging.WARNING)  # what is written is read when the process has ended
    warnings.simplefilter("ignore")
    without_gpu()
    without_packages()
    from megatron.bridge.training import gpt_step
    from megatron.bridge.training.callbacks import Callback
    from megatron.bridge.training.pretrain import pretrain

    from train_hooks.adapters.megatron_bridge import MegatronBridgeExport

    class Logged(Callback):
        """Before the export, the second opinion on it."""

        def on_train_start(self, context: Any) -> None:
            """As Bridge calls it."""
            kill = kill_at()
            if kill and rank() > 0 and PIPELINE > 1:  # the second micro-batch will not reach the last stage
                kill = (kill[0], 0)
            model = context.model[0].module
            ConsumedLog(model, RUN / "log", rank(), lambda: int(context.state.train_state.step), kill_at=kill)

    settings = config()
    export = MegatronBridgeExport(RUN, settings)
    pretrain(settings, export.forward_step(gpt_step.forward_step), callbacks=[Logged(), export])
    os._exit(0)  # the loader's and gloo's threads are left to the system


if __name__ == "__main__":
    main()
