"""How the text of a document may have become the tokens that a trainer packed.

Tokenization scripts differ in three things that the export does not record: whether a special token that is spelled out in a
text counts as one, whether the tokenizer puts special tokens around each text, and whether whitespace around a text is left out
(the Dolma toolkit does so). A document is tried in each way that its text makes a difference to. Behind a document one special
token may follow, the separator, whichever it is.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from indexer.durable import sha256_of_file
from indexer.tokenizer.tokenizer import open_tokenizer
from train_hooks.export_format.errors import RunError
from train_hooks.export_format.reading.reader import RunReader

__all__ = ["AROUND", "BEFORE", "PLAIN", "SPELLED", "STRIPPED", "SourceTokenizer"]

Ids = npt.NDArray[np.int64]
_CONTROL, _BYTE = re.compile(r"<[^<>\s]+>|\[[A-Z]+\]"), re.compile(r"<0x[0-9A-Fa-f]{2}>")
PLAIN, SPELLED, AROUND = "as it is", "special tokens spelled out in it as text", "special tokens around it"
STRIPPED = "whitespace around it left out"
BEFORE = "a special token put before it"


class SourceTokenizer:
    """A `tokenizers` file.

    sha256: of the file. specials: what may separate documents: added tokens, and those of the vocabulary named like control
    tokens (`</s>`, `[SEP]`), without those that stand for bytes.
    """

    def __init__(self, path: Path) -> None:
        """Raises RunError where `path` is no tokenizer.json."""
        self._plain, self._spelled = open_tokenizer(path), open_tokenizer(path)
        self._spelled.encode_special_tokens = True
        self.sha256 = sha256_of_file(path)
        added = self._plain.get_added_tokens_decoder()
        self.specials = frozenset(
            token_id
            for token, token_id in self._plain.get_vocab(with_added_tokens=True).items()
            if (token_id in added or _CONTROL.fullmatch(token)) and not _BYTE.fullmatch(token)
        )
        self._names = tuple(token.content for token in added.values())

    @classmethod
    def of_run(cls, run: RunReader, path: Path | None) -> "SourceTokenizer":
        """The one at `path`, or the run's own. Raises RunError where there is neither."""
        if path is None and run.info.tokenizer_file is None:
            raise RunError(
                f"run {run.info.run_id} was exported without a tokenizer; give the tokenizer.json that made its tokens with "
                "--tokenizer"
            )
        return cls(run.tokenizer_path() if path is None else path)

    def plain(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text as it is, i64, several at a time."""
        encodings = self._plain.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int64) for encoding in encodings]

    def ways(self, text: str, first: int | None = None) -> Iterator[tuple[str, Ids]]:
        """(how, ids) of each way but the first that makes a difference to this text.

        first: the document's first token in the export, where that is known. If it is a special one, it may have been put
        before the text by hand.
        """
        yield from self._without(text)
        if first in self.specials:
            for how, ids in [(PLAIN, _ids(self._plain, text, around=False)), *self._without(text)]:
                if AROUND not in how:
                    yield BEFORE if how == PLAIN else f"{BEFORE}, {how}", np.append(np.int64(first), ids)

    def _without(self, text: str) -> Iterator[tuple[str, Ids]]:
        yield from self._ways(text)
        stripped = text.strip()
        if stripped not in ("", text):
            yield STRIPPED, _ids(self._plain, stripped, around=False)
            for how, ids in self._ways(stripped):
                yield f"{how}, {STRIPPED}", ids

    def _ways(self, text: str) -> Iterator[tuple[str, Ids]]:
        tokenizers = [(self._plain, PLAIN)]
        if any(name in text for name in self._names):
            tokenizers.append((self._spelled, SPELLED))
            yield SPELLED, _ids(self._spelled, text, around=False)
        for tokenizer, how in tokenizers:
            bare, around = (_ids(tokenizer, text, around=value) for value in (False, True))
            if len(bare) != len(around):
                yield AROUND if how == PLAIN else f"{AROUND}, {SPELLED}", around

    def decode(self, ids: Ids) -> str:
        """The text of ids that the tokenizer has; the others have none."""
        return str(self._plain.decode(ids[ids < self._plain.get_vocab_size()].tolist(), skip_special_tokens=False))

    def offsets(self, text: str, how: str) -> Ids:
        """Where the characters of each token begin, i64 [n + 1], with the length of the text behind them."""
        tokenizer = self._spelled if SPELLED in how else self._plain
        given = text.strip() if STRIPPED in how else text
        before = text.index(given)
        encoding = tokenizer.encode(given, add_special_tokens=AROUND in how)
        starts = [before + start if end > start else None for start, end in encoding.offsets]
        found = np.full(len(starts) + 1, len(text), np.int64)
        for index in range(len(starts) - 1, -1, -1):
            start = starts[index]
            found[index] = found[index + 1] if start is None else min(start, int(found[index + 1]))
        return np.append(before, found) if BEFORE in how else found


def _ids(tokenizer: Tokenizer, text: str, *, around: bool) -> Ids:
    return np.array(tokenizer.encode(text, add_special_tokens=around).ids, np.int64)
