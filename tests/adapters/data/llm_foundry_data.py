# ruff: noqa: E402
"""Real texts as an MDS directory, written by the real package, and what a YAML for llm-foundry would say."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

for operator in ("nms", "qnms"):  # missing where torchvision was built for a GPU and torch was not; nobody calls them
    torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from streaming import MDSWriter
from tokenizers import Tokenizer

from tests.adapters import job
from tests.adapters.data.texts import EOS, SOURCES, VOCAB_OF_BYTES, bytes_tokenizer, texts
from train_hooks.documents.mds import CONCATENATED_COLUMNS, concatenated
from train_hooks.documents.megatron_preprocessing import SourceText

LENGTH = 64
SHARD_BYTES = 1 << 11  # several shards a directory


def all_texts() -> list[SourceText]:
    """Beginnings of documents of three sources; some shorter than a sequence, no two with the same first sequence."""
    found = [text for source in SOURCES for text in texts(source, 120) if text.text]
    cut = [replace(text, text=text.text[: 20 + 17 * number % 150]) for number, text in enumerate(found)]
    return [*{text.text.encode()[:LENGTH]: text for text in cut}.values()]


def tokenize(directory: Path) -> Callable[[str], list[int]]:
    """With the tokenizer of `prepare`."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer" / "tokenizer.json"))
    return lambda text: list(tokenizer.encode(text).ids)


def prepare(directory: Path) -> None:
    """A tokenizer of bytes, an MDS directory of single texts with their names, and one of all of them, concatenated."""
    bytes_tokenizer(directory / "tokenizer")
    columns = {"text": "str", "source": "str", "id": "str"}
    for split, chosen in (("train", all_texts()), ("held_out", all_texts()[:8])):
        with MDSWriter(out=str(directory / "texts" / split), columns=columns, size_limit=SHARD_BYTES) as out:
            for text in chosen:
                out.write({"text": text.text, "source": text.source, "id": text.document_id})
    with MDSWriter(
        out=str(directory / "packed" / "train"), columns=CONCATENATED_COLUMNS, size_limit=SHARD_BYTES
    ) as out:
        for sample in concatenated(all_texts(), tokenize(directory), length=LENGTH, eos=[EOS]):
            out.write(sample)


def configuration(data: Path, run: Path, loader: dict[str, Any]) -> dict[str, Any]:
    """Two layers of MPT. loader: `name`, and more for the dataset."""
    return {
        "run_name": "job", "seed": 1, "max_seq_len": LENGTH, "precision": "fp32", "max_duration": f"{job.STEPS}ba",
        "tokenizer": {"name": str(data / "tokenizer"), "kwargs": {"model_max_length": LENGTH}},
        "model": {
            "name": "mpt_causal_lm", "init_device": "cpu", "d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": LENGTH,
            "vocab_size": VOCAB_OF_BYTES, "attn_config": {"attn_impl": "torch"}, "loss_fn": "torch_crossentropy",
        },
        "optimizer": {"name": "decoupled_adamw", "lr": 1e-3}, "scheduler": {"name": "constant_with_warmup", "t_warmup": "1ba"},
        "train_loader": _loader(loader, data / "texts", "train", shuffle=True),
        "eval_loader": _loader({"name": "text"}, data / "texts", "held_out", shuffle=False),
        "eval_interval": "2ba", "global_train_batch_size": job.RANKS * job.ACCUMULATION * job.MICRO_BATCH,
        "device_train_microbatch_size": job.MICRO_BATCH, "device_eval_batch_size": 2,
        "save_folder": str(run / "checkpoints"), "save_interval": f"{job.SAVE_EVERY}ba", "autoresume": True,
        "callbacks": {
            "kiseki": {
                "run_dir": str(run), "sequence_length": LENGTH, "vocab_size": VOCAB_OF_BYTES,
                "tokenizer": str(data / "tokenizer" / "tokenizer.json"), "config": {"trainer": "llm-foundry"},
            },
            "consumed_log": {"directory": str(run / "log")},
        },
    }  # fmt: skip


def _loader(loader: dict[str, Any], directory: Path, split: str, *, shuffle: bool) -> dict[str, Any]:
    dataset = {"local": str(directory), "split": split, "max_seq_len": LENGTH, "shuffle": shuffle, "shuffle_seed": 5}
    return {
        "num_workers": job.WORKERS, "drop_last": shuffle, "pin_memory": False, **loader,
        "dataset": {**dataset, **loader.get("dataset", {})},
    }  # fmt: skip
