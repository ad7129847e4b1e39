"""A rank of Megatron-LM's own pretrain_gpt.py, on a CPU: its arguments, data, model, loop, optimizer, checkpoints.

All of it is the checkout's, megatron.core too. Stands in for the GPU: every tensor that would be put on it stays where it
is, and what torch.cuda says and does about streams, memory and random states. Not compiled: the fused kernels.
`--clip-grad 0`, since clipping wants a GPU.
"""

import functools
import os
import sys
from typing import Any

import torch
from torch.utils.data import DataLoader

from tests.adapters.attention_over_ranks import attention_over_ranks
from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.texts import EOD, LENGTH, SOURCES
from tests.adapters.job import (
    ACCUMULATION,
    MICRO_BATCH,
    RANKS,
    SAVE_EVERY,
    STEPS,
    WORKERS,
    die_together,
    kill_at,
    overflow_at,
    rank,
    run_dir,
)
from tests.adapters.jobs.without_gpu import without_gpu

RUN = run_dir()  # sys.argv is Megatron's later
PIPELINE, TENSOR, CONTEXT = (int(os.environ.get(name, "1")) for name in ("PIPELINE", "TENSOR", "CONTEXT"))
DATA = int(os.environ["WORLD_SIZE"]) // (PIPELINE * TENSOR * CONTEXT)
DISTRIBUTED = "DISTRIBUTED_OPTIMIZER" in os.environ
LOADER = os.environ.get("LOADER", "single")


def without_kernels() -> None:
    """What is compiled for a GPU, and its random states."""
    import megatron.core.tensor_parallel.random as random
    import megatron.legacy.fused_kernels as kernels

    kernels.load = lambda _: None
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


def distributed_optimizer() -> None:
    """With torch's Adam, whose steps of each parameter its checkpoints do not know: they stay. No weights are in FP8."""
    import megatron.core.fp8_utils as fp8
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer as Optimizer

    fp8._quantize_param_shard_impl = lambda *_, **__: None

    load = Optimizer._set_main_param_and_optimizer_states
    Optimizer._set_main_param_and_optimizer_states = lambda self, parameter, tensors: load(
        self, parameter, {**self._get_main_param_and_optimizer_states(parameter), **tensors}
    )


def arguments() -> list[Any]:
    """Of pretrain_gpt.py."""
    blend = [each for source in SOURCES for each in ("1", RUN.parent / "data" / source)]
    checkpoints = RUN / "checkpoints"
    return [
        "--tensor-model-parallel-size", TENSOR, "--pipeline-model-parallel-size", PIPELINE,
        "--context-parallel-size", CONTEXT, "--num-layers", 2,
        "--hidden-size", 32, "--num-attention-heads", 2, "--seq-length", LENGTH, "--max-position-embeddings", LENGTH,
        "--micro-batch-size", MICRO_BATCH, "--global-batch-size", ACCUMULATION * MICRO_BATCH * DATA,
        "--train-iters", STEPS, "--lr", "1e-3", "--clip-grad", 0, "--log-interval", 1, "--eval-iters", 1,
        "--eval-interval", SAVE_EVERY, "--data-path", *blend, "--split", "90,10,0",
        "--data-cache-path", RUN.parent / "cache", "--tokenizer-type", "NullTokenizer", "--vocab-size", EOD,
        "--save-interval", SAVE_EVERY, "--save", checkpoints, "--load", checkpoints,
        "--ckpt-format", os.environ.get("FORMAT", "torch"),
        "--num-workers", WORKERS, "--dataloader-type", LOADER, "--distributed-backend", "gloo", "--transformer-impl", "local",
        "--use-cpu-initialization", "--no-gradient-accumulation-fusion", "--no-masked-softmax-fusion",
        "--no-persist-layer-norm", "--no-bias-gelu-fusion", "--no-bias-dropout-fusion", "--no-rope-fusion",
        *(["--exit-interval", os.environ["EXIT_AT"]] if "EXIT_AT" in os.environ else []),
        *(["--use-distributed-optimizer", "--bf16"] if DISTRIBUTED else []),
        *(["--fp16", "--initial-loss-scale", 1024] if overflow_at() else []),
    ]  # fmt: skip


def model_provider() -> Any:
    """That of pretrain_gpt.py, in which older versions have it whole."""
    import pretrain_gpt

    try:
        from gpt_builders import gpt_builder
    except ModuleNotFoundError:
        return pretrain_gpt.model_provider
    return functools.partial(pretrain_gpt.model_provider, gpt_builder)


def external(export: Any, datasets: Any) -> Any:
    """A provider of our own loaders: ranks take samples by turns, not MICRO_BATCH each as by Megatron's sampler."""

    def provider(num_samples: Any) -> tuple[Any, Any, None]:
        from megatron.training import get_args

        train, valid, _ = datasets(num_samples)
        starts = range(get_args().consumed_train_samples, num_samples[0], MICRO_BATCH * RANKS)
        batches = [list(range(start + rank(), start + MICRO_BATCH * RANKS, RANKS)) for start in starts]
        loader = DataLoader(export.indexed(train), batch_sampler=batches, num_workers=WORKERS)
        return iter(loader), iter(DataLoader(valid, batch_size=MICRO_BATCH)), None

    return provider


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    die_together()
    without_gpu()
    sys.path.insert(0, os.environ["KISEKI_MEGATRON_LM"])  # now: it has a package named tests too, and megatron.core
    del sys.modules[
        "__main__"
    ].__file__  # what it starts for checkpoints would import this file again, and not find ours
    without_kernels()
    if CONTEXT > 1:
        attention_over_ranks()
    if DISTRIBUTED:
        distributed_optimizer()
    import pretrain_gpt
    from megatron.core.enums import ModelType
    from megatron.training import get_args, pretrain

    from train_hooks.adapters.megatron import MegatronExport

    build = model_provider()

    def step() -> int:
        return int(get_args().curr_iteration)

    def logged(*given: Any, **more: Any) -> Any:
        model, kill = build(*given, **more), kill_at()
        if kill and rank() > 0 and PIPELINE > 1:  # the second micro-batch will not reach the last stage
            kill = (kill[0], 0)
        ConsumedLog(model, RUN / "log", rank(), step, kill_at=kill, weights=bool(overflow_at()))
        model.register_forward_hook(lambda _, __, loss: loss * 1e30 if step() + 1 == overflow_at() else loss)
        return model

    sys.argv[1:] = map(str, arguments())
    export = MegatronExport(RUN, get_args, config={"trainer": "megatron-lm"})
    provider: Any = pretrain_gpt.train_valid_test_datasets_provider
    provider = external(export, provider) if LOADER == "external" else export.datasets(provider)
    provider.is_distributed = True
    pretrain(
        provider,
        export.model(logged),
        ModelType.encoder_or_decoder,
        export.forward_step(pretrain_gpt.forward_step),
    )
    export.close()
    os._exit(0)  # the loader's and gloo's threads are left to the system


if __name__ == "__main__":
    main()
