"""Small models with the call signatures of large ones, and the few lines that all loops share."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.train_hooks.hook.toy import LENGTH, SLOTS, VOCAB, microbatch

__all__ = [
    "IGNORED", "LENGTH", "MASK", "SLOTS", "VOCAB", "KwargsLm", "Lm", "Pairs", "TupleLm", "VisionLm",
    "WholeBatchLm", "batches", "next_token_loss", "plain", "sgd", "update",
]  # fmt: skip

IGNORED, MASK = -100, VOCAB - 1


class Lm(nn.Module):
    """Next-token model of one layer: its loss where it is given labels, else logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 8)
        self.places = nn.Embedding(8 * LENGTH, 8)
        self.inner = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(8, VOCAB)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cu_seqlens: Tensor | None = None,  # noqa: ARG002  of the attention that it does not have
    ) -> Tensor:
        positions = torch.arange(input_ids.shape[-1]) if position_ids is None else position_ids
        hidden = self.embed(input_ids) + self.places(positions)
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        logits = self.head(self.drop(torch.relu(self.inner(hidden))))
        return logits if labels is None else next_token_loss(logits, labels)


class KwargsLm(Lm):
    """As models of Hugging Face are called by its Trainer: everything by name."""

    def forward(self, **inputs: Any) -> dict[str, Tensor]:  # type: ignore[override]
        return {"loss": super().forward(**inputs)}


class TupleLm(Lm):
    """A model that takes whatever comes."""

    def forward(self, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(*inputs)


class WholeBatchLm(Lm):
    """A model that takes the micro-batch as one argument."""

    def forward(self, batch: Mapping[str, Any]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["input_ids"], batch["labels"])


class Pairs(Lm):
    """A model of two token tensors: preferences, or source and target."""

    def forward(self, chosen: Tensor, rejected: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(chosen).mean() - super().forward(rejected).mean()


class VisionLm(Lm):
    """A model of images and text."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Linear(12, 8)

    def forward(self, input_ids: Tensor, pixel_values: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        hidden = self.embed(input_ids) + self.look(pixel_values.flatten(1))[:, None]
        return next_token_loss(self.head(hidden), labels)


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labels that are not ignored."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten().long(), ignore_index=IGNORED)


def batches(num: int, first: int = 0, *, slots: int = SLOTS) -> Iterator[dict[str, Any]]:
    """`num` different micro-batches with labels, documents and sample_index."""
    return (microbatch(seed, slots=slots, documents=True) for seed in range(first, first + num))


def plain(num: int, first: int = 0, *, slots: int = SLOTS) -> Iterator[dict[str, Any]]:
    """The same without documents and sample_index."""
    return (microbatch(seed, slots=slots) for seed in range(first, first + num))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """An optimizer."""
    return torch.optim.SGD(model.parameters(), lr=0.01)


def update(optimizer: torch.optim.Optimizer, loss: Any) -> None:
    """Backward and one step of the optimizer."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
