# ruff: noqa: E402
"""A rank of a real Composer Trainer on two ranks: DDP, micro-batches, loader workers, evaluation, resume."""

from typing import Any

import torch

for operator in ("nms", "qnms"):  # missing where torchvision was built for a GPU and torch was not; nobody calls them
    torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from composer import DataSpec, Trainer
from composer.models import ComposerModel
from composer.utils import dist
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from tests.adapters.consumed_log import ConsumedLog
from tests.adapters.data.data import LENGTH, VOCAB, Packed, collate
from tests.adapters.data.models import Small
from tests.adapters.job import (
    ACCUMULATION,
    MICRO_BATCH,
    RANKS,
    SAVE_EVERY,
    SEQUENCES,
    STEPS,
    WORKERS,
    kill_at,
    rank,
    run_dir,
)
from train_hooks.adapters.composer import ExportCallback
from train_hooks.documents.in_batches import CarryingDocuments


class Model(ComposerModel):
    """As one writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Small()

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """The metadata is gone."""
        loss: Tensor = self.model(**batch)
        return loss

    def loss(self, outputs: Tensor, batch: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The model's own."""
        return outputs

    def get_metrics(self, is_train: bool = False) -> dict[str, Any]:
        """None."""
        return {}

    def eval_forward(self, batch: Any, outputs: Any = None) -> Any:
        """Its micro-batches are not the training's."""
        return self.model(**batch)


def collate_inputs(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Of what evaluation needs."""
    return collate([{name: item[name] for name in ("input_ids", "labels")} for item in items])


def main() -> None:
    """Train, from the newest checkpoint if there is one."""
    torch.manual_seed(1)
    dist.initialize_dist("cpu")
    run, model = run_dir(), Model()
    items = Packed(SEQUENCES)
    loader: DataLoader[Any] = DataLoader(
        items, MICRO_BATCH * ACCUMULATION, sampler=DistributedSampler(items, RANKS, rank(), seed=3),
        num_workers=WORKERS, collate_fn=CarryingDocuments(collate), drop_last=True,
    )  # fmt: skip
    held_out = Packed(4, first=5000)
    evaluation: DataLoader[Any] = DataLoader(
        held_out, 2, sampler=DistributedSampler(held_out, RANKS, rank()), collate_fn=collate_inputs
    )
    trainer = Trainer(
        model=model, optimizers=torch.optim.AdamW(model.parameters(), lr=1e-3),
        train_dataloader=DataSpec(loader, get_num_samples_in_batch=lambda batch: len(batch["input_ids"])),
        eval_dataloader=evaluation, eval_interval="2ba", max_duration=f"{STEPS}ba", device="cpu",
        device_train_microbatch_size=MICRO_BATCH, progress_bar=False, seed=1, autoresume=True, run_name="job",
        save_folder=str(run / "checkpoints"), save_interval=f"{SAVE_EVERY}ba", save_overwrite=False,
        callbacks=[ExportCallback(run, sequence_length=LENGTH, vocab_size=VOCAB, config={"trainer": "composer"})],
    )  # fmt: skip
    ConsumedLog(model.model, run / "log", rank(), lambda: int(trainer.state.timestamp.batch.value), kill_at=kill_at())
    trainer.fit()
    trainer.close()


if __name__ == "__main__":
    main()
