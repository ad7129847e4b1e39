"""A rank of a real `transformers.Trainer` on two ranks: DDP, accumulation, loader workers, evaluation, resume."""

import os
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.data import LENGTH, VOCAB, Packed, Unpadded, collate
from tests.adapters.job import ACCUMULATION, MICRO_BATCH, SAVE_EVERY, SEQUENCES, STEPS, WORKERS, kill_at, rank, run_dir
from train_hooks.adapters.hf import ExportCallback
from train_hooks.documents.in_batches import CarryingDocuments

PADDED = "PADDED" in os.environ


def padding_collator() -> Any:
    """Pads inputs, masks and labels to the longest sequence of the micro-batch."""
    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1}, "[UNK]"))
    return DataCollatorForSeq2Seq(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]"))


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    torch.manual_seed(1)
    run = run_dir()
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=LENGTH,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    checkpoints = run / "checkpoints"
    arguments = TrainingArguments(
        str(checkpoints), max_steps=STEPS, per_device_train_batch_size=MICRO_BATCH, per_device_eval_batch_size=2,
        gradient_accumulation_steps=ACCUMULATION, dataloader_num_workers=WORKERS, dataloader_prefetch_factor=3,
        remove_unused_columns=False, save_steps=SAVE_EVERY, logging_steps=1, eval_strategy="steps", eval_steps=2,
        report_to=[], use_cpu=True, disable_tqdm=True, seed=3,
        ddp_backend="gloo", dataloader_pin_memory=False,
    )  # fmt: skip
    collator, data = (padding_collator(), Unpadded) if PADDED else (collate, Packed)
    trainer = Trainer(
        model, arguments, data_collator=CarryingDocuments(collator), train_dataset=data(SEQUENCES),
        eval_dataset=data(4, first=5000),
    )  # fmt: skip
    ExportCallback.attach(
        trainer, run, sequence_length=LENGTH, vocab_size=VOCAB, config={"trainer": "hf"}, shorter_rows=PADDED
    )
    ConsumedLog(model, run / "log", rank(), lambda: trainer.state.global_step, kill_at=kill_at())
    resume = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    trainer.train(resume_from_checkpoint=resume)


if __name__ == "__main__":
    main()
