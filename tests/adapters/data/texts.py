"""Real texts, as tokens: a token is a byte of the text, and token 256 ends a document.

`bytes_tokenizer` is a tokenizer of Hugging Face's, which numbers the bytes another way.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from train_hooks.documents.megatron_preprocessing import SourceText
from train_hooks.replay import ReplayMicrobatch

VOCAB, EOD = 257, 256
VOCAB_OF_BYTES, EOS = 258, 1  # of bytes_tokenizer
LENGTH = 64
SOURCES = ("state-of-the-union", "python-docs", "tatoeba-ja")
CORPUS = Path(__file__).parents[3] / "examples" / "corpus"


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


def bytes_tokenizer(directory: Path) -> None:
    """Write a directory that `AutoTokenizer.from_pretrained` reads; `<s>` is 0, `</s>` ends texts."""
    directory.mkdir(parents=True)
    bytes_alone = Tokenizer(models.BPE())
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_OF_BYTES, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bytes_alone.train_from_iterator([], trainer)
    bytes_alone.save(str(directory / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")


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
