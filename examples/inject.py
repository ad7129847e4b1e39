"""Bad data on purpose: `--inject garbage@100,repeat@120` spoils half of the sequences of these steps.

`garbage`: uniformly random tokens under the names of the documents that they took the place of, as a broken decoder or a
corrupt file gives them. `repeat`: the step's first document over and over. With it one can see whether a loss spike is found
and what `kiseki steps explain` says about it, on data whose fault is known.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from errors import InputError
from packing import PackedSequence, PackedSequences
from torch.utils.data import Dataset

from train_hooks import Segment

KINDS = ("garbage", "repeat")


def parse_injections(text: str | None) -> dict[int, str]:
    """Step → kind of "kind@step,…"."""
    injections: dict[int, str] = {}
    for part in filter(None, (text or "").split(",")):
        kind, _, step = part.partition("@")
        if kind not in KINDS or not step.isdecimal() or int(step) < 1:
            raise InputError(f'--inject: "{part}" is not kind@step with a kind of {", ".join(KINDS)}, e.g. garbage@100')
        injections[int(step)] = kind
    return injections


class InjectedSequences(Dataset[PackedSequence]):
    """The same sequences, but of the steps in `injections` every other one is spoilt."""

    def __init__(self, sequences: PackedSequences, injections: dict[int, str], global_batch: int) -> None:
        self._sequences, self._injections, self._global_batch = sequences, injections, global_batch
        self._vocab_size = int(sequences.corpus.tokens.max()) + 1

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, sample_index: int) -> PackedSequence:
        row, place = self._sequences[sample_index], sample_index % self._global_batch
        kind = self._injections.get(sample_index // self._global_batch + 1)
        if kind is None or place % 2:
            return row
        if kind == "garbage":
            noise = np.random.default_rng(sample_index).integers(0, self._vocab_size, len(row.tokens))
            return replace(row, tokens=noise.astype(np.int64))
        return self._repeated(row, self._sequences[sample_index - place].segments[0])

    def _repeated(self, row: PackedSequence, first: Segment) -> PackedSequence:
        corpus = self._sequences.corpus
        document = next(
            number
            for number, name in enumerate(zip(corpus.sources, corpus.document_ids, strict=True))
            if name == (first.source, first.document_id)
        )
        text = corpus.tokens[int(corpus.starts[document]) : int(corpus.starts[document + 1])].astype(np.int64)
        tokens = np.resize(text, len(row.tokens))
        length = len(row.tokens) - 1
        segments = [
            replace(first, start=start, length=min(len(text), length - start), document_token_offset=0)
            for start in range(0, length, len(text))
        ]
        return replace(row, tokens=tokens, segments=segments)
