"""Real texts, as tokens: a token is a byte of the text, and token 256 ends a document."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train_hooks.documents.megatron_preprocessing import SourceText
from train_hooks.replay import ReplayMicrobatch

VOCAB, EOD = 257, 256
LENGTH = 64
SOURCES = ("state-of-the-union", "python-docs", "tatoeba-ja")
CORPUS = Path(__file__).parents[2] / "examples" / "corpus"


def texts(source: str, num_documents: int = 60, num_characters: int = 200) -> Iterator[SourceText]:
    """The beginnings of the first documents of a file of the corpus; each ninth one is empty."""
    path = CORPUS / f"{source}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for number, line in zip(range(num_documents), file, strict=False):
            record = json.loads(line)
            text = "" if number % 9 == 4 else record["text"][:num_characters]
            yield SourceText(source=source, document_id=record["id"], file=path.name, line=number + 1, text=text)


def tokens_of(text: str) -> list[int]:
    """Its bytes, and the end of the document."""
    return [*text.encode(), EOD] if text else []


def all_tokens() -> dict[tuple[str, str], list[int]]:
    """Source and id of every document → its tokens."""
    return {(text.source, text.document_id): tokens_of(text.text) for source in SOURCES for text in texts(source)}


def check_documents(part: ReplayMicrobatch, name: str, sources: dict[tuple[str, str], list[int]]) -> None:
    """Every token of every row stands in the text of the document named, at the offset named."""
    rows: Any = part.batch[name]
    for tokens, segments in zip(rows.tolist(), part.segments, strict=True):
        assert sum(segment.length for segment in segments) == len(tokens)
        for segment in segments:
            source = sources[segment.source, segment.document_id][segment.document_token_offset :]
            assert source[: segment.length] == tokens[segment.start : segment.start + segment.length]
