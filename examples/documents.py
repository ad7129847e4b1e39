"""From a directory of documents to token ids: the corpus, its tokenizer, and the tokenized corpus in memory.

A corpus is a directory of `*.jsonl.gz` files in the Dolma layout, a document a line: `id`, `text`, and maybe `source`
(else the file's name) and `metadata` (not read here). Order is file name, then line.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from errors import InputError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SEPARATOR = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """One text with the name that it keeps for ever."""

    source: str
    document_id: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedCorpus:
    """All documents end to end; tokens[starts[i]:starts[i + 1]] is document i with its separator token."""

    sources: list[str]
    document_ids: list[str]
    tokens: npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
    starts: npt.NDArray[np.int64]

    def sha256(self) -> str:
        """Hash of tokens and names: a position in the data order means something for this very corpus only."""
        digest = hashlib.sha256(self.tokens.tobytes())
        digest.update(json.dumps([self.sources, self.document_ids, self.starts.tolist()]).encode())
        return digest.hexdigest()


def read_corpus(directory: Path) -> list[Document]:
    """Every document of every *.jsonl.gz file in a directory; InputError names the file and line that is wrong."""
    files = sorted(directory.glob("*.jsonl.gz"))
    if not files:
        raise InputError(f"{directory}: no *.jsonl.gz files; give --corpus a directory of gzipped JSON lines")
    documents = [document for file in files for document in _read_file(file)]
    if not documents:
        raise InputError(f"{directory}: its *.jsonl.gz files hold no documents; give --corpus one that has some")
    return documents


def _read_file(file: Path) -> Iterator[Document]:
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                yield _parse_line(line, where=f"{file}:{number}", default_source=file.name.removesuffix(".jsonl.gz"))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{file}: not a whole gzip file of UTF-8 text ({error}); write it again") from error


def _parse_line(line: str, where: str, default_source: str) -> Document:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error}); each line must be one JSON object") from error
    if not isinstance(record, dict):
        raise InputError(f"{where}: a JSON {type(record).__name__}; each line must be one JSON object")
    source = record.get("source", default_source)
    for name, value in (("id", record.get("id")), ("text", record.get("text")), ("source", source)):
        if not isinstance(value, str):
            raise InputError(f'{where}: "{name}" is missing or not a string; each document needs "id" and "text"')
    return Document(source=source, document_id=record["id"], text=record["text"])


def train_tokenizer(documents: list[Document], vocab_size: int, file: Path) -> None:
    """Train a byte-level BPE tokenizer and write it to a file, which is there whole or not at all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        # All 256 bytes, so that any text can be encoded, also what the corpus does not hold.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    partial = file.with_name(file.name + ".partial")
    tokenizer.save(str(partial))
    partial.replace(file)


def load_tokenizer(file: Path) -> Tokenizer:
    """A tokenizer.json that has the separator token, else InputError."""
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # `tokenizers` raises nothing more precise, whatever is wrong with the file
        raise InputError(f"{file}: not a tokenizer.json ({error}); see `tokenizers.Tokenizer.save`") from error
    if tokenizer.token_to_id(SEPARATOR) is None:
        raise InputError(f"{file}: has no token {SEPARATOR}; add it as a special token or leave out --tokenizer")
    # A document that spells out the separator gets ordinary tokens: only we end documents.
    tokenizer.encode_special_tokens = True
    return tokenizer


def separator_id(tokenizer: Tokenizer) -> int:
    """The id of the separator token of a tokenizer from `load_tokenizer`."""
    token_id = tokenizer.token_to_id(SEPARATOR)
    assert token_id is not None
    return token_id


def tokenize(documents: list[Document], tokenizer: Tokenizer) -> TokenizedCorpus:
    """Encode every document and end it with the separator token; u16 ids where the vocabulary allows, else u32."""
    separator = separator_id(tokenizer)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    encodings = tokenizer.encode_batch_fast([document.text for document in documents], add_special_tokens=False)
    parts = [np.array([*encoding.ids, separator], dtype=dtype) for encoding in encodings]
    return TokenizedCorpus(
        sources=[document.source for document in documents],
        document_ids=[document.document_id for document in documents],
        tokens=np.concatenate(parts),
        starts=np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64),
    )
