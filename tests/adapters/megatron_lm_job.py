"""A rank of Megatron-LM's own pretrain_gpt.py, on a CPU: its arguments, data, model, loop, optimizer, checkpoints.

All of it is the checkout's, megatron.core too. Stands in for the GPU: every tensor that would be put on it stays where it
is, and what torch.cuda says and does about streams, memory and random states. Not compiled: the fused kernels.
`--clip-grad 0`, since clipping wants a GPU.
"""

import contextlib
import functools
import os
import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.job import ACCUMULATION, MICRO_BATCH, RANKS, SAVE_EVERY, STEPS, WORKERS, kill_at, rank, run_dir
from tests.adapters.texts import EOD, LENGTH, SOURCES

RUN = run_dir()  # sys.argv is Megatron's later
PIPELINE, TENSOR = (int(os.environ.get(name, "1")) for name in ("PIPELINE", "TENSOR"))
LOADER = os.environ.get("LOADER", "single")


class OnCpu(TorchFunctionMode):
    """Nothing is put on a GPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As torch calls it."""
        if function in (torch.Tensor.cuda, torch.Tensor.pin_memory):
            return args[0]
        given = {name: _on_cpu(value) if name == "device" else value for name, value in (kwargs or {}).items()}
        if function is torch.Tensor.to:
            args = (args[0], *map(_on_cpu, args[1:]))
        return function(*args, **given)


def _on_cpu(device: Any) -> Any:
    is_gpu = isinstance(device, str | torch.device) and "cuda" in str(device)
    return "cpu" if is_gpu or type(device) is int else device


class Nothing:
    """A stream or an event."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As one is made."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: 0


def without_gpu() -> None:
    """The stand-ins."""
    card = SimpleNamespace(major=9, minor=0, multi_processor_count=1, total_memory=1 << 30, name="none")
    answers: dict[str, Any] = {
        "is_available": True, "device_count": 2, "current_device": "cpu", "set_device": None, "synchronize": None,
        "get_device_properties": card, "get_device_capability": (9, 0), "empty_cache": None, "memory_stats": {},
        "memory_allocated": 0, "max_memory_allocated": 0, "memory_reserved": 0, "max_memory_reserved": 0,
        "current_stream": Nothing(), "default_stream": Nothing(), "is_current_stream_capturing": False,
        "stream": contextlib.nullcontext(), "manual_seed": None, "manual_seed_all": None,
        "reset_peak_memory_stats": None,
    }  # fmt: skip
    cuda: Any = torch.cuda
    for name, answer in answers.items():
        setattr(cuda, name, lambda *_, answer=answer, **__: answer)
    cuda.Stream = cuda.Event = Nothing
    cuda.get_rng_state = lambda *_: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    module: Any = nn.Module
    module.cuda = lambda self, *_: self
    OnCpu().__enter__()  # type: ignore[no-untyped-call]


def without_kernels() -> None:
    """What is compiled for a GPU, and its random states."""
    import megatron.core.tensor_parallel.random as random
    import megatron.legacy.fused_kernels as kernels

    kernels.load = lambda _: None
    random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)


def arguments() -> list[Any]:
    """Of pretrain_gpt.py."""
    blend = [each for source in SOURCES for each in ("1", RUN.parent / "data" / source)]
    checkpoints = RUN / "checkpoints"
    return [
        "--tensor-model-parallel-size", TENSOR, "--pipeline-model-parallel-size", PIPELINE, "--num-layers", 2,
        "--hidden-size", 32, "--num-attention-heads", 2, "--seq-length", LENGTH, "--max-position-embeddings", LENGTH,
        "--micro-batch-size", MICRO_BATCH, "--global-batch-size", ACCUMULATION * MICRO_BATCH * 2 // (PIPELINE * TENSOR),
        "--train-iters", STEPS, "--lr", "1e-3", "--clip-grad", 0, "--log-interval", 1, "--eval-iters", 1,
        "--eval-interval", SAVE_EVERY, "--data-path", *blend, "--split", "90,10,0",
        "--data-cache-path", RUN.parent / "cache", "--tokenizer-type", "NullTokenizer", "--vocab-size", EOD,
        "--save-interval", SAVE_EVERY, "--save", checkpoints, "--load", checkpoints, "--ckpt-format", "torch",
        "--num-workers", WORKERS, "--dataloader-type", LOADER, "--distributed-backend", "gloo", "--transformer-impl", "local",
        "--use-cpu-initialization", "--no-gradient-accumulation-fusion", "--no-masked-softmax-fusion",
        "--no-persist-layer-norm", "--no-bias-gelu-fusion", "--no-bias-dropout-fusion", "--no-rope-fusion",
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
    without_gpu()
    sys.path.insert(0, os.environ["KISEKI_MEGATRON_LM"])  # now: it has a package named tests too, and megatron.core
    without_kernels()
    import pretrain_gpt
    from megatron.core.enums import ModelType
    from megatron.training import get_args, pretrain

    from train_hooks.adapters.megatron import MegatronExport

    build = model_provider()

    def logged(*given: Any, **more: Any) -> Any:
        model, kill = build(*given, **more), kill_at()
        if kill and rank() > 0 and PIPELINE > 1:  # the second micro-batch will not reach the last stage
            kill = (kill[0], 0)
        ConsumedLog(model, RUN / "log", rank(), lambda: get_args().curr_iteration, kill_at=kill)
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
