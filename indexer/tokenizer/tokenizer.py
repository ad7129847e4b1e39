"""The run's own tokenizer: text ⇄ token ids, with character offsets."""

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from indexer.tokenizer.token_bytes import TokenBytes, bytes_of_tokens, token_bytes
from train_hooks.export_format.errors import InputError, QueryError, RunError
from train_hooks.export_format.reading.reader import RunReader

__all__ = ["Encoded", "RunTokenizer", "highest_token_id", "open_tokenizer", "text_of_ids"]

_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """token_ids i64 [n]; token i stands for characters [char_starts[i], char_ends[i]) of the text."""

    token_ids: npt.NDArray[np.int64]
    char_starts: npt.NDArray[np.int64]
    char_ends: npt.NDArray[np.int64]


class RunTokenizer:
    """The tokenizer that the export carries. Safe to use from several threads."""

    def __init__(self, run: RunReader) -> None:
        """Raises RunError where the run has no tokenizer or one that is not a `tokenizers` file or does not fit."""
        path = run.tokenizer_path()
        self._tokenizer = open_tokenizer(path)
        self._vocab_size = run.info.vocab_size
        highest = max(self._tokenizer.get_vocab().values(), default=-1)
        if highest >= run.info.vocab_size:
            raise RunError(
                f"{path} has token ids up to {highest}, the run was exported with vocab_size {run.info.vocab_size}; "
                "export with the tokenizer that made the tokens"
            )

    def encode(self, text: str) -> Encoded:
        """No special tokens are added: a trace asks what the text itself says. Raises QueryError for half a character."""
        if not text.isascii() and _HALF.search(text):
            raise QueryError("expected text, found half of a surrogate pair (U+D800 to U+DFFF) in it; remove it")
        found = self._tokenizer.encode(text, add_special_tokens=False)
        offsets = np.array(found.offsets, np.int64).reshape(-1, 2)
        return Encoded(
            token_ids=np.array(found.ids, np.int64), char_starts=offsets[:, 0].copy(), char_ends=offsets[:, 1].copy()
        )

    def decode(self, token_ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """Text of the tokens, special tokens included; half a character at an edge becomes U+FFFD."""
        return str(self._tokenizer.decode(_as_list(token_ids), skip_special_tokens=False))

    def decode_many(self, many: Sequence[npt.NDArray[np.integer]]) -> list[str]:
        """`decode` of each, several at a time."""
        table = self._token_bytes
        if table is None:
            decoded = self._tokenizer.decode_batch([_as_list(ids) for ids in many], skip_special_tokens=False)
            return [str(text) for text in decoded]
        return [b"".join(table[ids].tolist()).decode("utf-8", "replace") for ids in many]

    def pieces(self, token_ids: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """What each token adds to the text: joined they are `decode`. A character of several tokens is the last one's.

        Where a tokenizer falls back to bytes and they are no text, each token is decoded by itself.
        """
        table, ids = self._token_bytes, _as_list(token_ids)
        if table is not None:
            bytewise = codecs.getincrementaldecoder("utf-8")("replace")
            return [bytewise.decode(table[token_id], at == len(ids) - 1) for at, token_id in enumerate(ids)]
        stream = DecodeStream(skip_special_tokens=False)
        try:
            found = [stream.step(self._tokenizer, token_id) or "" for token_id in ids]
        except Exception:  # noqa: BLE001  `tokenizers` raises nothing more precise
            return [self.decode([token_id]) for token_id in ids]
        if found:
            found[-1] += self.decode(ids)[sum(map(len, found)) :]
        return found

    def names(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary spells it; "" for ids that it does not have."""
        return [self._tokenizer.id_to_token(token_id) or "" for token_id in token_ids]

    @cached_property
    def script_bytes(self) -> TokenBytes:
        """The bytes of each token, to know scripts by."""
        return bytes_of_tokens(self._tokenizer, self._vocab_size)

    @cached_property
    def _token_bytes(self) -> npt.NDArray[np.object_] | None:
        return token_bytes(self._tokenizer, self._vocab_size)


def text_of_ids(path: Path, token_ids: Sequence[int]) -> str:
    """The text of token ids of another tokenizer, whose tokenizer.json is at `path`; its special tokens have none.

    Raises RunError for no such file, QueryError for ids that it does not have.
    """
    tokenizer = open_tokenizer(path)
    known = set(tokenizer.get_vocab().values())
    strange = sorted({token_id for token_id in token_ids if token_id not in known})
    if strange:
        raise QueryError(f"expected token ids of {path}, found {strange[:5]}; is it the tokenizer that made them?")
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


def highest_token_id(path: Path) -> int:
    """Of the tokenizer.json at `path`, added tokens included. Raises RunError where it is none."""
    return max(open_tokenizer(path).get_vocab().values(), default=-1)


def open_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer that neither cuts nor pads. Raises RunError where `path` is no tokenizer.json."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # `tokenizers` raises nothing more precise, whatever is wrong with the file
        raise RunError(f"{path}: expected a tokenizer.json of the tokenizers library: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _as_list(token_ids: Sequence[int] | npt.NDArray[np.integer]) -> list[int]:
    ids = np.asarray(token_ids)
    if ids.size and int(ids.min()) < 0:
        raise InputError(f"expected token ids ≥ 0, found {int(ids.min())}")
    return ids.tolist() if ids.size else []
