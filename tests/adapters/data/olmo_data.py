"""Token files as the Dolma toolkit writes them: raw tokens in `.npy`, and a line a document in `.csv.gz`."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
from olmo_core.data import NumpyFSLDataset

from tests.adapters.data.texts import EOD, LENGTH, SOURCES, VOCAB, all_tokens, texts, tokens_of


def prepare(directory: Path) -> list[str]:
    """Write a pair of files a source; paths of the first ones."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for source in SOURCES:
        path, position, tokens, lines = directory / f"{source}.npy", 0, [], []
        for text in texts(source):
            ids = tokens_of(text.text)
            lines.append(
                f"{position},{position + len(ids)},{text.document_id},corpus/{source}/{text.file},{text.line}\n"
            )
            position += len(ids)
            tokens.extend(ids)
        np.array(tokens, np.uint16).tofile(path)
        with gzip.open(path.with_suffix(".csv.gz"), "wt", encoding="utf-8") as file:
            file.writelines(lines)
        paths.append(str(path))
    return paths


def named_tokens() -> dict[tuple[str, str], list[int]]:
    """Source and id of every document, as the resolver names them → its tokens."""
    tokens = all_tokens()
    return {
        (source, f"{text.document_id}@{source}/{text.file}#{text.line}"): tokens[source, text.document_id]
        for source in SOURCES
        for text in texts(source)
    }


def dataset_of(directory: Path) -> Any:
    """OLMo-core's dataset over the files."""
    paths = [str(directory / f"{source}.npy") for source in SOURCES]
    return NumpyFSLDataset(
        *paths, sequence_length=LENGTH, pad_token_id=0, eos_token_id=EOD, vocab_size=VOCAB, dtype=np.uint16,
    )  # fmt: skip
