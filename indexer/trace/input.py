"""What is traced: text or token ids → the token sequences to look for, each with its place in the text."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from indexer.reader import IndexReader
from indexer.tokenizer.tokenizer import Encoded, RunTokenizer
from train_hooks.export_format.errors import QueryError

__all__ = ["as_if_after_space", "check_vocabulary", "text_of_messages", "variants_of"]

Ids = npt.NDArray[np.int64]
MAX_QUERY_TOKENS = 100_000
MAX_QUERY_CHARACTERS = 1_000_000
HALF, LONGEST_CHARACTER = "\ufffd", 8


def variants_of(reader: IndexReader, text: str | None, token_ids: Sequence[int] | None) -> tuple[str, list[Encoded]]:
    """(text, token sequences). Text is tokenized as it stands, and as if a space stood before it.

    Raises QueryError for nothing to trace, both given, more than MAX_QUERY_TOKENS tokens, ids out of the vocabulary.
    """
    if (text is None) == (token_ids is None):
        raise QueryError("expected either text or token ids")
    if token_ids is not None:
        return _from_ids(reader, token_ids)
    if text is None or not text.strip():
        raise QueryError("expected text to trace, found none (or white space alone)")
    if len(text) > MAX_QUERY_CHARACTERS:
        raise QueryError(f"expected at most {MAX_QUERY_CHARACTERS} characters, found {len(text)}; trace it in parts")
    variants = [reader.tokenizer.encode(text), as_if_after_space(reader.tokenizer, text)]
    for encoded in variants:
        _check_length(len(encoded.token_ids))
    return text, variants


def as_if_after_space(tokenizer: RunTokenizer, text: str) -> Encoded:
    """The text's tokens with a space before it, with the places of its characters in the text without that space."""
    encoded = tokenizer.encode(" " + text)
    return Encoded(
        token_ids=encoded.token_ids,
        char_starts=np.maximum(encoded.char_starts - 1, 0),
        char_ends=np.maximum(encoded.char_ends - 1, 0),
    )


def text_of_messages(messages: Sequence[Mapping[str, object]]) -> tuple[str, str]:
    """(prompt, response) of chat messages: the last one is the response. Raises QueryError for anything else."""
    contents = []
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, str):
            raise QueryError(f'message {number}: expected {{"role": …, "content": text}}, found {message!r}'[:300])
        contents.append(content)
    if not contents:
        raise QueryError("expected chat messages, found none")
    return "\n".join(contents[:-1]), contents[-1]


def check_vocabulary(reader: IndexReader, token_ids: Sequence[int]) -> None:
    """Raises QueryError for ids (at least one) that the run's vocabulary does not have."""
    low, high = min(token_ids), max(token_ids)
    if low < 0 or high >= reader.info.vocab_size:
        raise QueryError(
            f"expected token ids in [0, {reader.info.vocab_size}), the vocabulary of run {reader.info.run_id}, found {low} to "
            f"{high}; are these ids of another tokenizer? Then give it, or the text"
        )


def _from_ids(reader: IndexReader, token_ids: Sequence[int]) -> tuple[str, list[Encoded]]:
    if not len(token_ids):
        raise QueryError("expected token ids to trace, found none")
    _check_length(len(token_ids))
    check_vocabulary(reader, token_ids)
    ids = np.asarray(token_ids, dtype=np.int64)
    if reader.info.tokenizer_file is None:
        zeros = np.zeros(len(ids), np.int64)
        return "", [Encoded(token_ids=ids, char_starts=zeros, char_ends=zeros)]
    text, starts, ends = _decoded(reader.tokenizer, ids)
    return text, [Encoded(token_ids=ids, char_starts=starts, char_ends=ends)]


def _decoded(tokenizer: RunTokenizer, ids: Ids) -> tuple[str, Ids, Ids]:
    """The ids' text and the characters of each. A character made of several tokens belongs to all of them.

    Decoding is not quite a concatenation, so tokens are added to a run until it decodes without half a character.
    """
    pieces: list[str] = []
    starts, ends = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
    position, first = 0, 0
    for index in range(len(ids)):
        piece = tokenizer.decode(ids[first : index + 1])
        whole = not piece.endswith(HALF) or index + 1 - first >= LONGEST_CHARACTER or index + 1 == len(ids)
        if whole:
            pieces.append(piece)
            starts[first : index + 1], ends[first : index + 1] = position, position + len(piece)
            position, first = position + len(piece), index + 1
    return "".join(pieces), starts, ends


def _check_length(num_tokens: int) -> None:
    if num_tokens > MAX_QUERY_TOKENS:
        raise QueryError(f"expected at most {MAX_QUERY_TOKENS} tokens, found {num_tokens}; trace it in parts")
