"""A rank of NeMo 2's own `llm.pretrain`, on a CPU: its trainer, strategy, data module, GPT model, evaluation, checkpoints.

Stands in for the GPU (`without_gpu`) beside Lightning's CPU accelerator, since NeMo puts what it logs on one.
"""

import os
import warnings
from typing import Any

import numpy
import torch
from lightning.pytorch import Callback

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.texts import EOD, LENGTH, SOURCES
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
from tests.adapters.jobs.without_gpu import without_gpu

RUN = run_dir()
PIPELINE, TENSOR = (int(os.environ.get(name, "1")) for name in ("PIPELINE", "TENSOR"))


class Logged(Callback):
    """Before the export, the second opinion on it."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """As Lightning calls it."""
        kill = kill_at()
        if kill and rank() > 0 and PIPELINE > 1:  # the second micro-batch will not reach the last stage
            kill = (kill[0], 0)
        forward = trainer.strategy.model[0].module.module  # Megatron's, in its DistributedDataParallel
        ConsumedLog(forward, RUN / "log", rank(), lambda: int(trainer.global_step), kill_at=kill)


def model() -> Any:
    """Two layers."""
    import nemo.lightning as nl
    from megatron.core.optimizer import OptimizerConfig
    from nemo.collections import llm
    from nemo.collections.llm.gpt.model.base import local_layer_spec

    config = llm.GPTConfig(
        num_layers=2, hidden_size=32, ffn_hidden_size=64, num_attention_heads=2, seq_length=LENGTH,
        transformer_layer_spec=local_layer_spec, use_cpu_initialization=True, gradient_accumulation_fusion=False,
        masked_softmax_fusion=False, persist_layer_norm=False, bias_dropout_fusion=False, cross_entropy_loss_fusion=False,
        make_vocab_size_divisible_by=1, hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    optimizer = OptimizerConfig(optimizer="adam", lr=1e-3, clip_grad=0.0, use_distributed_optimizer=False)
    return llm.GPTModel(config, optim=nl.MegatronOptimizerModule(config=optimizer))


def data() -> Any:
    """A blend of three."""
    from nemo.collections import llm
    from nemo.collections.common.tokenizers.null_tokenizer import NullTokenizer

    return llm.PreTrainingDataModule(
        paths=[each for source in SOURCES for each in ("1", str(RUN.parent / "data" / source))], seq_length=LENGTH,
        tokenizer=NullTokenizer(EOD), micro_batch_size=MICRO_BATCH, num_workers=WORKERS, split="90,10,0", seed=7,
        global_batch_size=ACCUMULATION * MICRO_BATCH * 2 // (PIPELINE * TENSOR), eod_mask_loss=True,
        index_mapping_dir=str(RUN.parent / "cache"),
    )  # fmt: skip


def trainer(*callbacks: Any) -> Any:
    """With NeMo's strategy."""
    import nemo.lightning as nl
    from megatron.core.distributed import DistributedDataParallelConfig

    strategy = nl.MegatronStrategy(
        tensor_model_parallel_size=TENSOR, pipeline_model_parallel_size=PIPELINE, pipeline_dtype=torch.float32,
        ddp=DistributedDataParallelConfig(use_distributed_optimizer=False), ckpt_async_save=False,
    )  # fmt: skip
    return nl.Trainer(
        accelerator="cpu", devices=2, strategy=strategy, max_steps=STEPS, val_check_interval=SAVE_EVERY, limit_val_batches=1,
        limit_test_batches=1, log_every_n_steps=1, use_distributed_sampler=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_checkpointing=False, logger=False,
    )  # fmt: skip


def without_more() -> None:
    """What megatron.core and NeMo ask of a GPU beside that; and of numpy, whose 2.0 no longer has it."""
    import megatron.core.tensor_parallel.random as random
    import nemo.lightning.io.pl as checkpoints

    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    checkpoints._fix_tensors_device = lambda checkpoint: checkpoint  # they are where they belong
    numpy.product = numpy.prod  # type: ignore[attr-defined]


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    die_together()
    warnings.simplefilter("ignore")
    without_gpu()
    without_more()
    import nemo.lightning as nl
    from nemo.collections import llm

    from train_hooks.adapters.nemo import NemoExport

    export = NemoExport(RUN, config={"trainer": "nemo"})
    checkpoints = nl.ModelCheckpoint(
        every_n_train_steps=SAVE_EVERY, save_top_k=-1, monitor="reduced_train_loss", save_last=True
    )
    llm.pretrain(
        model(), data(), trainer(Logged(), export),
        log=nl.NeMoLogger(log_dir=str(RUN), name="nemo", use_datetime_version=False, ckpt=checkpoints),
        resume=nl.AutoResume(resume_if_exists=True, resume_ignore_no_checkpoint=True),
    )  # fmt: skip
    os._exit(0)  # the loader's and gloo's threads are left to the system


if __name__ == "__main__":
    main()
