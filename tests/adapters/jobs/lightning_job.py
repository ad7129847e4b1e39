"""A rank of a real `lightning.Trainer` on two ranks: DDP, accumulation, loader workers, validation, resume."""

import os
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.data import LENGTH, VOCAB, Packed, collate
from tests.adapters.data.models import Small
from tests.adapters.job import (
    ACCUMULATION,
    MICRO_BATCH,
    SAVE_EVERY,
    SEQUENCES,
    STEPS,
    WORKERS,
    kill_at,
    overflow_at,
    rank,
    run_dir,
)
from train_hooks.adapters.lightning import ExportCallback
from train_hooks.documents.in_batches import CarryingDocuments


class Module(LightningModule):
    """As one writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.model: nn.Module = Small()

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """The metadata is gone. In fp16, the loss of one step is too large."""
        loss: Tensor = self.model(**batch)
        self.log("train_loss", loss)
        return loss * 1e30 if self.global_step + 1 == overflow_at() else loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Its micro-batches are not the training's."""
        self.log("val_loss", self.model(**batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def collate_inputs(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Of what validation needs."""
    return collate([{name: item[name] for name in ("input_ids", "labels")} for item in items])


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    seed_everything(1, verbose=False)
    run = run_dir()
    module = Module()
    loader: DataLoader[Any] = DataLoader(
        Packed(SEQUENCES), MICRO_BATCH, shuffle=True, num_workers=WORKERS, collate_fn=CarryingDocuments(collate)
    )
    validation: DataLoader[Any] = DataLoader(Packed(4, first=5000), 2, collate_fn=collate_inputs)
    export = ExportCallback(run, sequence_length=LENGTH, vocab_size=VOCAB, config={"trainer": "lightning"})
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_steps=STEPS,
        accumulate_grad_batches=ACCUMULATION, val_check_interval=4, log_every_n_steps=1, logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(run),
        plugins=[MixedPrecision("16-mixed", "cpu")] if overflow_at() else None,
        callbacks=[
            ModelCheckpoint(str(run / "checkpoints"), every_n_train_steps=SAVE_EVERY, save_top_k=-1, filename="{step:04}"),
            export,
        ],
    )  # fmt: skip
    ConsumedLog(
        module.model, run / "log", rank(), lambda: trainer.global_step, kill_at=kill_at(), weights=bool(overflow_at())
    )
    saved = sorted((run / "checkpoints").glob("*.ckpt"))
    trainer.fit(module, loader, validation, ckpt_path=str(saved[-1]) if saved else None)
    trainer.save_checkpoint(str(run / "after.ckpt"))
    if "AGAIN" in os.environ:
        trainer.fit_loop.epoch_loop.max_steps = STEPS + 2
        trainer.fit(module, loader, validation)


if __name__ == "__main__":
    main()
