"""A language model that needs torch alone."""

import torch
from torch import Tensor, nn

from tests.adapters.data.data import LENGTH, VOCAB


class Small(nn.Module):
    """Two layers, hidden 32. Returns the loss where it gets labels (unshifted), else the logits."""

    def __init__(self, *, vocabulary: int = VOCAB, length: int = LENGTH) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(vocabulary, 32), nn.Embedding(length, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.head = nn.Linear(32, vocabulary)

    def forward(
        self,
        input_ids: Tensor,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
    ) -> Tensor:
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        hidden = self.embed(input_ids) + self.positions(position_ids)
        for layer in self.layers:
            hidden = hidden + torch.relu(layer(hidden))
        logits: Tensor = self.head(hidden)
        if labels is None:
            return logits
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
