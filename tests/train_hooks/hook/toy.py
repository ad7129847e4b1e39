"""A model, micro-batches and a read-back, small enough for every behaviour of the hook to have a test of its own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from train_hooks import ExportHook, Segment
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import Row
from train_hooks.replay import ReplayDataset, ReplayMicrobatch

LENGTH, VOCAB, SLOTS = 16, 97, 2


class Toy(nn.Module):
    """Next-token model of one layer. `seen` keeps a copy of the token ids of every forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 8)
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, VOCAB)
        self.seen: list[Tensor] = []

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Tensor:
        self.seen.append(input_ids.clone())
        logits = self.head(torch.relu(self.inner(self.embed(input_ids))))
        if labels is None:
            return torch.mean(logits)
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def microbatch(seed: int, *, slots: int = SLOTS, documents: bool = False) -> dict[str, Any]:
    """input_ids and labels int64 [slots, LENGTH], the labels shifted by one; with segments and sample_index on request."""
    tokens = torch.from_numpy(np.random.default_rng(seed).integers(0, VOCAB, (slots, LENGTH + 1)))
    batch: dict[str, Any] = {"input_ids": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}
    if documents:
        batch["segments"] = [
            [
                Segment(start=0, length=10, source="web", document_id=f"{seed}-{slot}", document_token_offset=0),
                Segment(start=10, length=6, source="web", document_id=f"{seed}-{slot}+", document_token_offset=3),
            ]
            for slot in range(slots)
        ]
        batch["sample_index"] = torch.arange(slots) + seed * slots
    return batch


def microbatches(num: int, first: int = 0) -> Iterator[dict[str, Any]]:
    """`num` different ones."""
    return (microbatch(seed) for seed in range(first, first + num))


def attach(model: nn.Module, run_dir: Path, **options: Any) -> ExportHook:
    """The hook with this toy's sizes."""
    return ExportHook.attach(model, run_dir, sequence_length=LENGTH, vocab_size=VOCAB, config={}, **options)


def train_step(model: nn.Module, batches: Sequence[Any]) -> None:
    """Forward and backward of each."""
    for batch in batches:
        model(**batch).backward()


def exported(run_dir: Path) -> dict[tuple[int, int, int], ReplayMicrobatch]:
    """(step, dp_rank, microbatch) → what the canonical export holds of it, all hashes checked."""
    found = {}
    for dp_rank in range(_num_writers(run_dir)):
        for part in ReplayDataset(run_dir, dp_rank=dp_rank):
            found[part.global_step, dp_rank, part.microbatch] = part
    return found


def exported_ids(run_dir: Path, key: str = "input_ids") -> list[Tensor]:
    """The token ids of dp_rank 0, micro-batch after micro-batch."""
    return [part.batch[key] for part in ReplayDataset(run_dir)]


def rows(run_dir: Path, attempt: int = 1) -> list[Row]:
    """Every row of an attempt."""
    reader = RunReader(run_dir).attempt(attempt)
    return [row for frame in reader.frames(1, 1 << 40) for row in reader.rows(frame)]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Equal in number, shapes, dtypes and bits."""
    return len(one) == len(other) and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


def _num_writers(run_dir: Path) -> int:
    return max(attempt.info.num_writers for attempt in RunReader(run_dir).attempts())
