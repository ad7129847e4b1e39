"""A rank of nanotron's own training on a CPU: its run_train.py's loaders, its trainer, model, optimizer, checkpoints.

Stands in for the GPU (`without_gpu`), for FlashAttention (`without_flash_attention`; the model has no rotary embeddings and
the norm that is not fused), for NCCL by gloo, and for what gloo lacks, the average. Its consumption statistics, which it
keeps of folders with `s3` in their path alone, are the reason for such a path.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.utils import collect_env
from torch.utils.data import DataLoader

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.texts import EOS, LENGTH, VOCAB_OF_BYTES
from tests.adapters.job import (
    ACCUMULATION,
    MICRO_BATCH,
    RANKS,
    RESUME_STEP,
    SAVE_EVERY,
    STEPS,
    WORKERS,
    kill_at,
    rank,
    run_dir,
)
from tests.adapters.jobs.without_flash_attention import without_flash_attention
from tests.adapters.jobs.without_gpu import without_gpu

RUN = run_dir()  # sys.argv is nanotron's later
DATA = RUN.parent / "s3"
TENSOR, PIPELINE = (int(os.environ.get(name, "1")) for name in ("TENSOR", "PIPELINE"))
ZERO = int(os.environ.get("ZERO", "0"))


def config() -> dict[str, Any]:
    """Of run_train.py, as YAML. Where STAGES is set, training that resumes begins a second stage of the same data.

    With ZeRO-1, this commit accumulates no gradients in fp32, and one of its sanity checks expects each rank to have all of
    the optimizer's state.
    """
    folders = sorted(str(folder) for folder in DATA.iterdir())
    dataset = {
        "dataset_folder": folders, "dataset_weights": [0.6, 0.4], "tokenizer_name": str(RUN.parent / "tokenizer"),
        "vocab_size": VOCAB_OF_BYTES, "token_size_in_bytes": 2, "return_positions": True, "shuffle_files": True,
    }  # fmt: skip
    model = {
        "is_qwen2_config": True, "bos_token_id": 0, "eos_token_id": EOS, "hidden_size": 32, "intermediate_size": 64,
        "max_position_embeddings": LENGTH, "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "vocab_size": VOCAB_OF_BYTES, "no_rope_layer": 1, "_fused_rms_norm": False, "_use_doc_masking": True,
        "log_attn_probs": False,
    }  # fmt: skip
    data = {"dataset": dataset, "num_loading_workers": WORKERS, "seed": 3}
    starts = [1, RESUME_STEP + 1] if "STAGES" in os.environ and (RUN / "checkpoints").exists() else [1]
    return {
        "checkpoints": {
            "checkpoint_interval": SAVE_EVERY, "checkpoints_path": str(RUN / "checkpoints"), "save_final_state": False,
            "checkpoints_path_is_shared_file_system": True, "resume_checkpoint_path": str(RUN / "checkpoints"),
        },
        "data_stages": [{"name": f"from {start}", "start_training_step": start, "data": data,
                         "sequence_length": LENGTH} for start in starts],
        "general": {"project": "kiseki", "run": "test", "seed": 1, "ignore_sanity_checks": ZERO > 0},
        "logging": {"log_level": "warning", "log_level_replica": "warning", "iteration_step_info_interval": 1},
        "model": {
            "ddp_bucket_cap_mb": 25, "dtype": "bfloat16", "init_method": {"std": 0.025}, "make_vocab_size_divisible_by": 1,
            "model_config": model,
        },
        "optimizer": {
            "accumulate_grad_in_fp32": not ZERO, "clip_grad": 1.0, "weight_decay": 0.01, "zero_stage": ZERO,
            "learning_rate_scheduler": {"learning_rate": 1e-3, "lr_warmup_steps": 1, "lr_warmup_style": "linear",
                                        "lr_decay_steps": STEPS - 1, "lr_decay_style": "cosine",
                                        "min_decay_lr": 1e-4},
            "optimizer_factory": {"name": "adamW", "adam_beta1": 0.9, "adam_beta2": 0.95, "adam_eps": 1e-4,
                                  "torch_adam_is_fused": False},
        },
        "parallelism": {"dp": RANKS // TENSOR // PIPELINE, "pp": PIPELINE, "tp": TENSOR, "pp_engine": "1f1b",
                        "tp_mode": "ALL_REDUCE", "tp_linear_async_communication": False},
        "tokenizer": {"tokenizer_name_or_path": str(RUN.parent / "tokenizer")},
        "tokens": {"batch_accumulation_per_replica": ACCUMULATION, "micro_batch_size": MICRO_BATCH,
                   "sequence_length": LENGTH, "train_steps": STEPS},
    }  # fmt: skip


class Hidden:
    """A dataset of tokens, and no more; it is trained on as nanotron's own are."""

    def __init__(self, dataset: Any) -> None:
        self.get_consumption_stats = dataset.get_consumption_stats
        self.item = dataset.__getitem__

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.item(index)["input_ids"]}


def hidden(loader: Any) -> Any:
    """The loader given, over tokens alone."""
    dataset: Any = Hidden(loader.dataset)
    return DataLoader(
        dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn, num_workers=loader.num_workers
    )


def with_gloo() -> None:
    """As with NCCL, tensors that require gradients are reduced in place."""
    import nanotron.distributed as distributed

    reduce = distributed.all_reduce
    distributed.all_reduce = lambda tensor, *given, **more: reduce(tensor.detach(), *given, **more)
    dist.init_process_group("gloo")


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    without_gpu()
    without_flash_attention()
    collect_env.main = lambda: None
    checkout = Path(os.environ["KISEKI_NANOTRON"])
    sys.path.insert(0, os.environ["KISEKI_DATATROVE"] + "/src")
    sys.path += [str(checkout / "src"), str(checkout)]
    with_gloo()
    from nanotron import trainer as module
    from run_train import get_dataloader

    from train_hooks.adapters.nanotron import exported

    path = RUN / f"config{rank()}.yaml"
    RUN.mkdir(exist_ok=True)
    path.write_text(json.dumps(config()), encoding="utf-8")  # which is YAML too
    module.state_dict_to_device = lambda *_: None  # it asserts that the optimizer's state is on a GPU then
    trainer = module.DistributedTrainer(str(path))
    ConsumedLog(trainer.unwrapped_model, RUN / "log", rank(), lambda: trainer.iteration_step - 1, kill_at=kill_at())
    loaders = get_dataloader(trainer)
    if "HIDDEN" in os.environ:
        loaders = {stage: hidden(loader) for stage, loader in loaders.items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaders = exported(trainer, loaders, RUN)
    (RUN / f"warnings{rank()}.txt").write_text("\n".join(str(warning.message) for warning in caught), encoding="utf-8")
    trainer.train(loaders)
    os._exit(0)  # the loader's and gloo's threads are left to the system


if __name__ == "__main__":
    main()
