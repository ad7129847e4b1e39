"""A small decoder-only transformer: rotary positions, pre-norm, squared-ReLU MLP, and a convolution at the bottom.

Attention is causal over the whole packed sequence, across document boundaries, as in GPT-2 and GPT-3 pre-training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class GPTConfig:
    """Everything that decides the shapes of the parameters, and the longest input."""

    vocab_size: int
    sequence_length: int
    layers: int
    width: int
    heads: int


class ShortConvolution(nn.Module):
    """Each feature of a token becomes a weighted sum of that feature in it and in the few tokens before it.

    A depthwise causal convolution, as in Primer (arXiv:2109.08668). Attention needs long to find out who the last few
    tokens were; given them for nothing, so small a model learns phrases by heart within a minute.
    """

    def __init__(self, width: int, reach: int = 4) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(reach, width))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, width] -> [B, L, width]."""
        reach, length = len(self.weight), x.shape[1]
        padded = F.pad(x, (0, 0, reach - 1, 0))
        mixed = x * self.weight[0]
        for distance in range(1, reach):
            mixed = mixed + padded[:, reach - 1 - distance :][:, :length] * self.weight[distance]
        return mixed


class Attention(nn.Module):
    """Causal self-attention with rotary positions and normalised queries and keys."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query_key_value = nn.Linear(config.width, 3 * config.width, bias=False)
        self.output = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, L, width] -> [B, L, width]."""
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # Normalised queries and keys keep the logits of attention bounded, so that a high learning rate is stable.
        q, k = rotate(F.rms_norm(q, q.shape[-1:]), cos, sin), rotate(F.rms_norm(k, k.shape[-1:]), cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed: Tensor = self.output(y.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """Attention, then an MLP, each added to the residual stream."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.expand = nn.Linear(config.width, 4 * config.width, bias=False)
        self.contract = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, L, width] -> [B, L, width]."""
        x = x + self.attention(F.rms_norm(x, x.shape[-1:]), cos, sin)
        mlp: Tensor = self.contract(F.relu(self.expand(F.rms_norm(x, x.shape[-1:]))).square())
        return x + mlp


class GPT(nn.Module):
    """The model: token embedding, short convolution, blocks, output head."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.convolution = ShortConvolution(config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        cos, sin = rotary_tables(config.sequence_length, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        # Called with (input_ids, labels) of every forward, for tests that want to know what the model was really fed.
        self.observer: Callable[[Tensor, Tensor], None] | None = None
        self.initialise()

    def initialise(self) -> None:
        """Residual branches and head start at zero: the untrained model predicts every token alike."""
        nn.init.normal_(self.embedding.weight, std=0.05)
        nn.init.zeros_(self.head.weight)
        for module in self.modules():
            if isinstance(module, Block):
                nn.init.zeros_(module.attention.output.weight)
                nn.init.zeros_(module.contract.weight)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy in nats of int64 labels [B, L] given int64 input_ids [B, L]; a scalar."""
        if self.observer is not None:
            self.observer(input_ids, labels)
        return F.cross_entropy(self.head(self.hidden(input_ids)).flatten(0, 1), labels.flatten())

    def next_token_logits(self, input_ids: Tensor) -> Tensor:
        """Logits [B, vocab_size] of the token after input_ids [B, L]."""
        logits: Tensor = self.head(self.hidden(input_ids)[:, -1])
        return logits

    def hidden(self, input_ids: Tensor) -> Tensor:
        """The normalised residual stream [B, L, width] under the head."""
        cos, sin = self.cos[: input_ids.shape[1]], self.sin[: input_ids.shape[1]]
        x = self.embedding(input_ids)
        x = self.convolution(F.rms_norm(x, x.shape[-1:]))
        for block in self.blocks:
            x = block(x, cos, sin)
        return F.rms_norm(x, x.shape[-1:])


def rotary_tables(length: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head_width / 2] of rotary position embedding (arXiv:2104.09864)."""
    frequencies = 10_000.0 ** -(torch.arange(0, head_width, 2) / head_width)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of features of x [B, heads, L, head_width] by the angle of its position."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
