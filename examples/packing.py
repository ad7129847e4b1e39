"""From tokenized documents to packed sequences in a fixed order that no number of ranks changes.

The data order is a function of corpus, mixture, sequence length and seed alone:

1. Each epoch takes every document as often as the weight of its source says, in an order shuffled for this epoch.
2. The documents of all epochs, end to end, are one stream. Sequence r reads stream[r*L : r*L + L + 1]: L inputs and the
   L labels that follow them. Sequences advance by L, so that every token is a label once and none is lost at a cut.
3. The sequences that begin in one epoch are shuffled among themselves. `sample_index` counts through the result.

Epochs are only ever added at the end: a longer run sees the sequences of a shorter one first, and in the same order.
(Indices built for a fixed number of samples change altogether when that number does.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from documents import TokenizedCorpus
from errors import InputError
from torch.utils.data import Dataset, Sampler

from train_hooks import Segment

EVERY_OTHER_SOURCE = "*"


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedSequence:
    """L + 1 tokens, and the segments that cover the first L: the inputs."""

    sample_index: int
    tokens: npt.NDArray[np.int64]
    segments: list[Segment]


def parse_mixture(text: str | None, corpus: TokenizedCorpus) -> dict[str, float]:
    """Repeats per epoch of each source, from "source=weight,..."; `*` stands for every source that is not named."""
    sources = sorted(set(corpus.sources))
    if text is None:
        text = _default_mixture(corpus)
    given: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, weight = part.partition("=")
        try:
            given[name] = float(weight)
        except ValueError as error:
            raise InputError(f'--mixture: "{part}" is not source=weight, e.g. {sources[0]}=2.5') from error
        if name not in (EVERY_OTHER_SOURCE, *sources):
            raise InputError(f'--mixture: no source "{name}" in the corpus; it has {", ".join(sources)}')
        if not 0 <= given[name] < float("inf"):
            raise InputError(f'--mixture: "{part}": a weight is a number of repeats per epoch, 0 or more')
    mixture = {source: given.get(source, given.get(EVERY_OTHER_SOURCE, 1.0)) for source in sources}
    if not any(mixture.values()):
        raise InputError("--mixture: every source has weight 0; give at least one a positive weight")
    return mixture


def _default_mixture(corpus: TokenizedCorpus) -> str:
    """The smallest source over and over, and a little of all others: the small demo's stand-in for a real mixture."""
    sizes: dict[str, int] = {}
    for source, length in zip(corpus.sources, np.diff(corpus.starts).tolist(), strict=True):
        sizes[source] = sizes.get(source, 0) + length
    return f"{min(sizes, key=lambda source: sizes[source])}=4,*=0.04"


class PackedSequences(Dataset[PackedSequence]):
    """The first num_sequences packed sequences of the data order."""

    def __init__(
        self, corpus: TokenizedCorpus, mixture: dict[str, float], sequence_length: int, seed: int, num_sequences: int
    ) -> None:
        self.corpus = corpus
        self.sequence_length = sequence_length
        by_source = {source: np.flatnonzero(np.array(corpus.sources) == source) for source in mixture}
        visits: list[npt.NDArray[np.int64]] = []
        order: list[npt.NDArray[np.int64]] = []
        num_tokens = num_ordered = 0
        # The last sequence of an epoch ends in the next one, so the stream must reach beyond the last one we need.
        while num_ordered < num_sequences or num_tokens <= (max(part.max() for part in order) + 1) * sequence_length:
            rng = np.random.default_rng([seed, len(visits)])
            visits.append(_documents_of_epoch(by_source, mixture, rng))
            first = -(-num_tokens // sequence_length)
            num_tokens += int(np.diff(corpus.starts)[visits[-1]].sum())
            sequences = np.arange(first, -(-num_tokens // sequence_length))
            if num_ordered < num_sequences and len(sequences):
                order.append(rng.permutation(sequences))
                num_ordered += len(sequences)
        self._visits = np.concatenate(visits)
        self._visit_ends = np.cumsum(np.diff(corpus.starts)[self._visits])
        self._order = np.concatenate(order)[:num_sequences]
        self.num_epochs = len(order)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, sample_index: int) -> PackedSequence:
        start = int(self._order[sample_index]) * self.sequence_length
        parts, segments = [], []
        for segment_start, document, offset, length in self._pieces(start, start + self.sequence_length + 1):
            first = int(self.corpus.starts[document]) + offset
            parts.append(self.corpus.tokens[first : first + length])
            if segment_start < self.sequence_length:  # the token at L is a label only
                segments.append(
                    Segment(
                        start=segment_start,
                        length=min(length, self.sequence_length - segment_start),
                        source=self.corpus.sources[document],
                        document_id=self.corpus.document_ids[document],
                        document_token_offset=offset,
                    )
                )
        return PackedSequence(
            sample_index=sample_index, tokens=np.concatenate(parts).astype(np.int64), segments=segments
        )

    def _pieces(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(position in the sequence, document, offset in the document, length) of each part of stream[start:end]."""
        visit, position = int(np.searchsorted(self._visit_ends, start, side="right")), start
        while position < end:
            document, visit_end = int(self._visits[visit]), int(self._visit_ends[visit])
            document_length = int(self.corpus.starts[document + 1] - self.corpus.starts[document])
            length = min(visit_end, end) - position
            yield position - start, document, position - (visit_end - document_length), length
            visit, position = visit + 1, position + length


def _documents_of_epoch(
    by_source: dict[str, npt.NDArray[np.int64]], mixture: dict[str, float], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Document numbers in their order: weight 2.5 is each document twice, and half of them, drawn anew, once more."""
    picks = []
    for source, documents in by_source.items():
        repeats, rest = divmod(mixture[source], 1)
        picks += [documents] * int(repeats)
        if rest:
            picks.append(rng.permutation(documents)[: max(1, round(rest * len(documents)))])
    return rng.permutation(np.concatenate(picks))


class GlobalBatchSampler(Sampler[list[int]]):
    """This rank's micro-batches: each consecutive group of micro_batch * num_ranks samples is dealt to the ranks.

    With the same product of micro_batch, num_ranks and accumulation, every step sees the same samples.
    """

    def __init__(self, start: int, end: int, micro_batch: int, rank: int, num_ranks: int) -> None:
        self._starts = range(start + rank * micro_batch, end, micro_batch * num_ranks)
        self._micro_batch = micro_batch

    def __iter__(self) -> Iterator[list[int]]:
        for start in self._starts:
            yield list(range(start, start + self._micro_batch))

    def __len__(self) -> int:
        return len(self._starts)


def collate(rows: list[PackedSequence]) -> dict[str, Any]:
    """input_ids and labels int64 [B, L], segments (B lists), sample_index int64 [B]."""
    tokens = torch.from_numpy(np.stack([row.tokens for row in rows]))
    return {
        "input_ids": tokens[:, :-1].contiguous(),
        "labels": tokens[:, 1:].contiguous(),
        "segments": [row.segments for row in rows],
        "sample_index": torch.tensor([row.sample_index for row in rows]),
    }
