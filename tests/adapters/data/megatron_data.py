"""Three real tokenized files for Megatron, of real texts.

One file is written by us, two by Megatron's own builder: one a sequence a document, one cut into "sentences".
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from megatron.core.tokenizers import MegatronTokenizer

from tests.adapters.data.texts import EOD, LENGTH, SOURCES, VOCAB, texts, tokens_of
from train_hooks.documents.megatron_preprocessing import name_documents, write_indexed


def prepare(directory: Path) -> list[str]:
    """Write the three files; their prefixes."""
    directory.mkdir(parents=True, exist_ok=True)
    prefixes = [str(directory / source) for source in SOURCES]
    write_indexed(
        prefixes[0], texts(SOURCES[0]), lambda text: list(text.encode()), vocab_size=VOCAB, end_of_document=EOD
    )
    with_builder(prefixes[1], [[tokens_of(text.text)] for text in texts(SOURCES[1])])
    with_builder(prefixes[2], [halves(tokens_of(text.text)) for text in texts(SOURCES[2])])
    for prefix, source in zip(prefixes[1:], SOURCES[1:], strict=True):
        name_documents(prefix, texts(source))
    return prefixes


def halves(tokens: list[int]) -> list[list[int]]:
    """As `--split-sentences` leaves a document: several sequences."""
    middle = len(tokens) // 2
    return [part for part in (tokens[:middle], tokens[middle:]) if part]


def with_builder(prefix: str, documents: Sequence[Sequence[Sequence[int]]]) -> None:
    """As `preprocess_data.py` writes them."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for sequences in documents:
        tokens = [token for sequence in sequences for token in sequence]
        builder.add_document(torch.tensor(tokens), [len(sequence) for sequence in sequences if sequence])
    builder.finalize(f"{prefix}.idx")


def train_dataset(prefixes: Sequence[str], num_samples: int, cache: Path, **settings: Any) -> Any:
    """megatron.core's BlendedDataset over the three, 4:3:3. Collective where processes are."""
    config = GPTDatasetConfig(
        random_seed=7, sequence_length=LENGTH, blend=(list(prefixes), [0.4, 0.3, 0.3]), split="1,0,0",
        path_to_cache=str(cache), reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=True,
        create_attention_mask=False, mid_level_dataset_surplus=0.05,
        tokenizer=MegatronTokenizer.from_pretrained(metadata_path={"library": "null"}, vocab_size=EOD), **settings,
    )  # fmt: skip
    builder = BlendedMegatronDatasetBuilder(GPTDataset, [num_samples, 0, 0], lambda: True, config)
    return builder.build()[0]
