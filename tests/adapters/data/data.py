"""Packed sequences for the jobs of these tests: every tensor is a function of the index alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from train_hooks import Segment

LENGTH, VOCAB = 16, 97


def tokens_of(index: int) -> Tensor:
    """int64 [LENGTH]."""
    return torch.from_numpy(np.random.default_rng(index).integers(0, VOCAB, LENGTH))


class Packed(Dataset[dict[str, Any]]):
    """Two documents a sequence, the second one cut or padded: labels, attention mask and positions as trainers have them."""

    def __init__(self, num_sequences: int, *, first: int = 0) -> None:
        self._num_sequences, self._first = num_sequences, first

    def __len__(self) -> int:
        return self._num_sequences

    def __getitem__(self, position: int) -> dict[str, Any]:
        index = self._first + position
        num_first, num_pads = 4 + index % 7, index % 3
        tokens, mask = tokens_of(index), torch.ones(LENGTH, dtype=torch.int64)
        if num_pads:
            mask[-num_pads:] = 0
        return {
            "input_ids": tokens,
            "labels": tokens.masked_fill(mask == 0, -100),
            "attention_mask": mask,
            "position_ids": torch.cat([torch.arange(num_first), torch.arange(LENGTH - num_first)]),
            "segments": segments_of(index),
            "sample_index": index,
        }


def segments_of(index: int) -> list[Segment]:
    """The documents of a sequence."""
    cut, end = 4 + index % 7, LENGTH - index % 3
    return [
        Segment(start=0, length=cut, source="web", document_id=f"d{index}", document_token_offset=0),
        Segment(start=cut, length=end - cut, source="code", document_id=f"d{index}+", document_token_offset=index),
    ]


def length_of(index: int) -> int:
    """Tokens of a sequence of `Unpadded`."""
    return 3 + index * 5 % (LENGTH - 2)


class Unpadded(Packed):
    """The beginnings of those sequences, each of its own length, which a collate function is to pad."""

    def __getitem__(self, position: int) -> dict[str, Any]:
        item = super().__getitem__(position)
        length = length_of(item["sample_index"])
        names = ("input_ids", "labels", "attention_mask")
        cut = {name: item[name][:length].tolist() for name in names}
        return {**cut, "segments": unpadded_segments(item["sample_index"]), "sample_index": item["sample_index"]}


def unpadded_segments(index: int) -> list[Segment]:
    """The documents of a sequence of `Unpadded`."""
    return [
        replace(segment, length=min(segment.length, length_of(index) - segment.start))
        for segment in segments_of(index)
        if segment.start < length_of(index)
    ]


def padded_tokens(index: int, length: int) -> Tensor:
    """A sequence of `Unpadded`, padded with zeros: int64 [length]."""
    return nn.functional.pad(tokens_of(index)[: length_of(index)], (0, length - length_of(index)))


def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Of tensors alone, as most collate functions are."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}
