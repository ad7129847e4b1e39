"""A rank of llm-recipes' continual pretraining on a CPU: its arguments, data, sampler, loader, `train`, checkpoints.

Its `finetuning.main` wants NCCL, FlashAttention and a downloaded model, so `main` here does what that does, with a small
Llama, FSDP on a CPU, and gloo. Stands in for wandb, and for the random state of a GPU. Its checkpoints of a sharded model
are not offloaded to the CPU: on a CPU, torch 2.13 would free the parameters before it reads them. With fp16 the weights are
float32, and the scaler of losses is told that they are on a CPU; elsewhere it would be off.
"""

import functools
import os
import sys
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.texts import EOD, LENGTH, SOURCES, VOCAB
from tests.adapters.job import (
    ACCUMULATION,
    MICRO_BATCH,
    RANKS,
    SAVE_EVERY,
    STEPS,
    WORKERS,
    kill_at,
    overflow_at,
    rank,
    run_dir,
)
from train_hooks.documents.in_batches import Indexed

RUN = run_dir()  # sys.argv is llm-recipes' later
SHARDING = os.environ.get("SHARDING", "NO_SHARD")


class Unused(ModuleType):
    """A module that is imported and not used, but for `log`."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def arguments() -> list[Any]:
    """Of llm-recipes."""
    blend = [each for source in SOURCES for each in ("1", RUN.parent / "data" / source)]
    checkpoints = RUN / "checkpoints"
    return [
        "--seq-length", LENGTH, "--micro-batch-size", MICRO_BATCH,
        "--global-batch-size", MICRO_BATCH * ACCUMULATION * RANKS, "--train-iters", STEPS, "--eval-interval", SAVE_EVERY,
        "--eval-iters", 1, "--save-interval", SAVE_EVERY, "--save", checkpoints, "--load", checkpoints,
        "--fp16" if overflow_at() else "--bf16",
        "--data-path", *blend, "--split", "90,10,0", "--data-cache-path", RUN.parent / "cache", "--num-workers", WORKERS,
        "--tokenizer-type", "NullTokenizer", "--vocab-size", EOD, "--base-model", "Llama-small", "--lr", "1e-3",
        "--continual-pretraining", "--sharding-strategy", SHARDING,
    ]  # fmt: skip


def overflow(output: Any) -> Any:
    """The output with a loss whose gradients are infinite."""
    output.loss = output.loss * 1e36
    return output


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    sys.path += [os.environ["KISEKI_LLM_RECIPES"], os.environ["KISEKI_LLM_RECIPES"] + "/src"]
    from transformers import LlamaConfig, LlamaForCausalLM

    sys.modules["wandb"] = Unused("wandb")
    cuda: Any = torch.cuda
    cuda.get_rng_state, cuda.set_rng_state = torch.get_rng_state, torch.set_rng_state
    from llama_recipes.arguments import parse_args
    from llama_recipes.datasets.pretrain_dataset import build_train_valid_test_datasets
    from llama_recipes.get_fsdp import get_sharding_strategy
    from llama_recipes.utils import checkpoint, train_utils
    from llama_recipes.utils.train_utils import get_policies, train
    from megatron_lm.megatron.data.data_samplers import build_pretraining_data_loader
    from megatron_lm.megatron.global_vars import set_global_variables

    from train_hooks.adapters.llm_recipes import exported

    train_utils.ShardedGradScaler = functools.partial(train_utils.ShardedGradScaler, device="cpu")
    config = checkpoint.FullStateDictConfig
    checkpoint.FullStateDictConfig = lambda **given: config(**{**given, "offload_to_cpu": False})
    sys.argv[1:] = map(str, arguments())
    args = parse_args()
    set_global_variables(args=args, build_tokenizer=True)
    args.gradient_accumulation_steps = args.global_batch_size // (args.micro_batch_size * args.world_size)
    dist.init_process_group("gloo")
    torch.manual_seed(1)
    args.iteration = checkpoint.get_latest_iteration(args.load)
    checkpoint.load_rng_state_dict(args.load)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64}
    model = LlamaForCausalLM(
        LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=LENGTH + 1)
    )
    checkpoint.load_model_state_dict(model, args.load)
    model.to(torch.float32 if overflow_at() else torch.bfloat16)
    _, policy = get_policies(rank=rank(), model_name=args.base_model)
    sharded = FullyShardedDataParallel(
        model, auto_wrap_policy=policy, sharding_strategy=get_sharding_strategy(), device_id=torch.device("cpu")
    )
    train_set, valid_set, _ = build_train_valid_test_datasets()
    args.consumed_train_samples = args.global_batch_size * args.iteration
    loader = build_pretraining_data_loader(dataset=Indexed(train_set), consumed_samples=args.consumed_train_samples)
    valid = build_pretraining_data_loader(dataset=valid_set, consumed_samples=0)
    optimizer = AdamW(sharded.parameters(), lr=args.lr)
    checkpoint.load_optimizer_state_dict(model=sharded, optimizer=optimizer, path=args.load)
    scheduler = LambdaLR(optimizer, lambda _: 1.0)
    checkpoint.load_scheduler_state_dict(scheduler, args.load)

    def step() -> int:
        return int(scheduler.last_epoch)

    ConsumedLog(model, RUN / "log", rank(), step, kill_at=kill_at(), weights=bool(overflow_at()))
    model.register_forward_hook(lambda *given: overflow(given[-1]) if step() + 1 == overflow_at() else None)
    watched = exported(sharded, loader, RUN, args, vocab_size=VOCAB, config={"trainer": "llm-recipes"})
    train(
        model=sharded, train_dataloader=watched, eval_dataloader=valid, optimizer=optimizer, lr_scheduler=scheduler,
        gradient_accumulation_steps=args.gradient_accumulation_steps, local_rank="cpu", rank=rank(),
    )  # fmt: skip
    watched.close()
    os._exit(0)  # the loader's and gloo's threads are left to the system


if __name__ == "__main__":
    main()
