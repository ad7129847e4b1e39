"""The names of the documents in datatrove's tokenized files, found again by their tokens.

    texts = (SourceText(source="wiki", document_id=…, file="ja/wiki/train_0.jsonl.gz", line=…, text=…) for … in …)
    name_documents(Path("tokenized").glob("*.ds"), texts, lambda text: tokenizer.encode(text).ids, token_size=2)

`DocumentTokenizer` shuffles the documents of each file, by default with a seed that nobody keeps, and
`DocumentTokenizerMerger` mixes files; both drop the ids. So the texts are tokenized once more, and each document of a file
takes the name of the text with the same tokens. Of several texts with the same tokens each is taken once, in their order:
which of them stood where, the tokens cannot say. `tokenize` must give what was written, with the end of text where the
tokenizer was told to add one.

Beside each file `X.ds` it writes `X.ds.documents.arrow` (`sidecar`). Memory holds 28 bytes a text, and as much again while
it sorts; the names go through a temporary directory (`TMPDIR`).
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from train_hooks.documents.datatrove import TokenizedFile, open_tokenized
from train_hooks.documents.megatron_preprocessing import SourceText
from train_hooks.export_format.documents.sidecar import DocumentName, Sidecar, SidecarWriter
from train_hooks.export_format.errors import InputError

__all__ = ["name_documents"]

_DIGEST_BYTES = 16


def name_documents(
    paths: Iterable[Path | str],
    texts: Iterable[SourceText],
    tokenize: Callable[[str], Sequence[int]],
    *,
    token_size: int,
) -> int:
    """Write the names for the .ds files at `paths`; gives back their number.

    texts: all that the files were made of, and maybe more. token_size: bytes of a token, 2 or 4. Raises InputError for
    a document whose tokens no text gives; then its file has no sidecar.
    """
    files = [open_tokenized(path, token_size) for path in sorted(map(Path, paths))]
    with tempfile.TemporaryDirectory() as directory:
        names = _Names(Path(directory) / "texts", texts, tokenize, np.dtype(f"<u{token_size}"))
        return sum(_name_file(file, names) for file in files)


class _Names:
    """The names of all texts, to be taken by the digest of their tokens."""

    def __init__(
        self,
        prefix: Path,
        texts: Iterable[SourceText],
        tokenize: Callable[[str], Sequence[int]],
        dtype: np.dtype[Any],
    ) -> None:
        digests = bytearray()
        writer = SidecarWriter(prefix)
        for text in texts:
            digests += _digest(_encoded(text, tokenize(text.text), dtype))
            writer.add(
                DocumentName(
                    source=text.source, document_id=text.document_id, file=text.file, line=text.line,
                    text_sha256=hashlib.sha256(text.text.encode()).digest(),
                )
            )  # fmt: skip
        prefix.write_bytes(b"")
        self.num_texts = len(digests) // _DIGEST_BYTES
        writer.finish(prefix, self.num_texts)
        self._names = Sidecar(prefix, prefix)
        halves = np.frombuffer(digests, "<u8").reshape(-1, 2)
        self._ordinals = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: equal ones stay in the texts' order
        self._first, self._second = halves[self._ordinals, 0], halves[self._ordinals, 1]
        self._num_taken = np.zeros(self.num_texts, np.uint32)

    def take(self, tokens: npt.NDArray[np.unsignedinteger[Any]]) -> DocumentName | None:
        """The name of the next text with these tokens; None where there is none, or none is left."""
        first, second = np.frombuffer(_digest(tokens), "<u8")
        begin, end = np.searchsorted(self._first, first, "left"), np.searchsorted(self._first, first, "right")
        stop = begin + np.searchsorted(self._second[begin:end], second, "right")
        begin += np.searchsorted(self._second[begin:end], second, "left")
        if begin == stop or self._num_taken[begin] == stop - begin:
            return None
        ordinal = self._ordinals[begin + self._num_taken[begin]]
        self._num_taken[begin] += 1
        return self._names.document(int(ordinal))


def _encoded(text: SourceText, ids: Sequence[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    tokens = np.asarray(ids, np.int64)
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() <= np.iinfo(dtype).max:
        raise InputError(
            f"{text.file}, line {text.line}: expected tokens of {dtype.itemsize} bytes, found {tokens.min()} to "
            f"{tokens.max()}; give the token_size of the files"
        )
    return tokens.astype(dtype)


def _digest(tokens: npt.NDArray[Any]) -> bytes:
    return hashlib.sha256(tokens.tobytes()).digest()[:_DIGEST_BYTES]


def _name_file(file: TokenizedFile, names: _Names) -> int:
    writer = SidecarWriter(file.path)
    start = 0
    for ordinal, end in enumerate(map(int, file.ends)):
        name = names.take(file.tokens[start:end])
        if name is None:
            writer.abandon()
            raise InputError(
                f"{file.path}: expected the tokens of one of {names.num_texts} texts, each once, at document {ordinal} "
                f"(tokens {start} to {end}), found others; give all texts, the tokenizer with its end of text, files that do "
                "not hold the same texts twice, and none that were shuffled in chunks"
            )
        writer.add(name)
        start = end
    writer.finish(Path(f"{file.path}.index"), len(file.ends))
    return len(file.ends)
