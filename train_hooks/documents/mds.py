"""MDS directories (mosaicml-streaming, llm-foundry) whose samples know their documents.

    with MDSWriter(out="data/train", columns=CONCATENATED_COLUMNS) as out:
        for sample in concatenated(texts, lambda text: tokenizer(text)["input_ids"], length=2048, eos=[0]):
            out.write(sample)

`concatenated` gives, sample for sample, the tokens of llm-foundry's `ConcatTokensDataset`, which `convert_dataset_hf` writes
(and those of `convert_text_to_mds` with wrapping, for files below a megabyte, which it tokenizes whole), and beside them a
column `segments`: which text stands where. It is in the sample itself, so that it goes wherever the sample goes: through
merges of shards, object stores, several streams, shuffles. llm-foundry's own dataset does not look at it;
`train_hooks.adapters.llm_foundry` does.

Offsets count the tokens of the text as `tokenize` gives them. `eos` counts to the document, behind its text; `bos` stands
before the text, in no segment.

`MdsPlaces` says in which shard, and where there, a sample of a StreamingDataset is. Its number counts the samples of all
shards of all streams, in the order in which the streams are given and their `index.json` lists shards, from 0; choosing,
repeating and shuffling streams change the order of numbers, not the numbers.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from train_hooks.documents.megatron_preprocessing import SourceText
from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import Segment

__all__ = ["CONCATENATED_COLUMNS", "MdsPlaces", "SamplePlace", "concatenated", "segments_of_column"]

CONCATENATED_COLUMNS = {"tokens": "ndarray:int32", "segments": "json"}


def concatenated(
    texts: Iterable[SourceText],
    tokenize: Callable[[str], Sequence[int]],
    *,
    length: int,
    bos: Sequence[int] = (),
    eos: Sequence[int] = (),
    wrap: bool = True,
) -> Iterator[dict[str, Any]]:
    """Samples of `length` tokens, for an MDSWriter with `CONCATENATED_COLUMNS`: int32 [length], and the segments.

    bos, eos: tokens put around each text, what `--bos_text` and `--eos_text` are in tokens. wrap: False is `--no_wrap`,
    which begins each sample with a text. What does not fill the last sample is left out, as llm-foundry does.
    """
    tokens: list[int] = []
    parts: list[_Part] = []
    for text in texts:
        ids = [*tokenize(text.text), *eos]
        start = len(tokens) + len(bos)
        parts.append(
            _Part(start=start, stop=start + len(ids), source=text.source, document_id=text.document_id, offset=0)
        )
        tokens += [*bos, *ids]
        first = 0
        while len(tokens) - first >= length:
            here = slice(first, first + length)
            yield {
                "tokens": np.asarray(tokens[here], dtype=np.int32),
                "segments": [part.column(first) for part in _within(parts, first, first + length)],
            }
            first = here.stop if wrap else len(tokens)
        if first:
            parts = [part.moved(first) for part in _within(parts, first, len(tokens))]
            tokens = tokens[first:]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """Tokens [start, stop) of the buffer are one document's, from `offset` on."""

    start: int
    stop: int
    source: str
    document_id: str
    offset: int

    def column(self, first: int) -> list[Any]:
        """As the column has it; `first`: where the sample begins in the buffer."""
        return [self.start - first, self.stop - self.start, self.source, self.document_id, self.offset]

    def moved(self, by: int) -> "_Part":
        return _Part(
            start=self.start - by,
            stop=self.stop - by,
            source=self.source,
            document_id=self.document_id,
            offset=self.offset,
        )


def _within(parts: Sequence[_Part], first: int, stop: int) -> Iterator[_Part]:
    for part in parts:
        start, end = max(part.start, first), min(part.stop, stop)
        if start < end:
            yield _Part(
                start=start, stop=end, source=part.source, document_id=part.document_id,
                offset=part.offset + start - part.start,
            )  # fmt: skip


def segments_of_column(column: Iterable[Sequence[Any]], num_tokens: int) -> list[Segment]:
    """The documents in the first `num_tokens` tokens of a sample, by its column `segments`."""
    return [
        Segment(
            start=start, length=min(length, num_tokens - start), source=source, document_id=document_id,
            document_token_offset=offset,
        )
        for start, length, source, document_id, offset in column
        if start < num_tokens
    ]  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplePlace:
    """Row `row`, from 0, of the shard file `shard` in the `stream`-th directory, from 0."""

    stream: int
    shard: str
    row: int


class MdsPlaces:
    """Where the samples of a StreamingDataset stand."""

    def __init__(self, directories: Iterable[Path | str]) -> None:
        """directories: of each stream, with its split, in the dataset's order. Raises InputError without `index.json`."""
        self._shards = [
            (stream, str(shard["raw_data"]["basename"]), int(shard["samples"]))
            for stream, directory in enumerate(directories)
            for shard in _shards(Path(directory))
        ]
        self._stops = np.array(list(accumulate(samples for _, _, samples in self._shards)), np.int64)

    def __len__(self) -> int:
        """The number of samples."""
        return int(self._stops[-1]) if len(self._stops) else 0

    def place(self, sample_index: int) -> SamplePlace:
        """Of a sample. Raises InputError for one that is not there."""
        if not 0 <= sample_index < len(self):
            raise InputError(
                f"expected a sample below {len(self)}, found {sample_index}; give the directories of all streams, in order"
            )
        number = int(np.searchsorted(self._stops, sample_index, side="right"))
        stream, shard, num_samples = self._shards[number]
        return SamplePlace(stream=stream, shard=shard, row=sample_index - int(self._stops[number]) + num_samples)


def _shards(directory: Path) -> list[dict[str, Any]]:
    path = directory / "index.json"
    try:
        shards: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["shards"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"expected {path}, which MDSWriter writes beside the shards; found {error!r}") from error
    return shards
