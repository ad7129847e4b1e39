"""In place of Megatron's `tools/preprocess_data.py`, or after it: PREFIX.bin and PREFIX.idx that know their documents.

    tokenizer = Tokenizer.from_file("tokenizer.json")
    texts = (SourceText(source="wiki", document_id=…, file=…, line=…, text=…) for … in …)
    write_indexed("data/wiki", texts, lambda text: tokenizer.encode(text).ids, vocab_size=V, end_of_document=eod)
    name_documents("data/wiki", texts)      # where preprocess_data.py has made data/wiki.bin and .idx of the same texts

The files are byte for byte those of `preprocess_data.py --append-eod` with the same tokens: one document a line, in the
order of the input, empty ones among them.
"""

import contextlib
import hashlib
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train_hooks.export_format.documents.sidecar import DocumentName, SidecarWriter
from train_hooks.export_format.errors import InputError

__all__ = ["SourceText", "name_documents", "write_indexed"]

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_UINT16, _INT32 = 8, 4
_UINT16_BELOW = 65_500  # Megatron's DType.optimal_dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceText:
    """A document before tokenization. file: path below the corpus; line: from 1."""

    source: str
    document_id: str
    file: str
    line: int
    text: str


def write_indexed(
    prefix: Path | str,
    texts: Iterable[SourceText],
    tokenize: Callable[[str], Sequence[int]],
    *,
    vocab_size: int,
    end_of_document: int | None = None,
) -> int:
    """Write PREFIX.bin, PREFIX.idx and the names of the documents; gives back their number.

    tokenize: text → token ids. end_of_document: token appended to each text that has tokens. Raises InputError for a
    token that vocab_size does not allow. Where it fails, files of PREFIX that are there already stay as they are.
    """
    dtype = np.dtype("<u2") if vocab_size < _UINT16_BELOW else np.dtype("<i4")
    lengths = array("i")
    index, half = Path(f"{prefix}.idx"), Path(f"{prefix}.bin.inprogress")
    with _removed_after(half), SidecarWriter(prefix) as names:
        with half.open("wb") as file:
            for text in texts:
                ids = list(tokenize(text.text))
                if ids and end_of_document is not None:
                    ids.append(end_of_document)
                if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
                    raise InputError(
                        f"{text.file}, line {text.line}: expected tokens in [0, {vocab_size}), found {min(ids)} to {max(ids)}"
                    )
                file.write(np.array(ids, dtype).tobytes())
                lengths.append(len(ids))
                names.add(_name(text))
        half.replace(f"{prefix}.bin")
        index.write_bytes(_index(lengths, dtype))
        names.finish(index, len(lengths))
    return len(lengths)


def name_documents(prefix: Path | str, texts: Iterable[SourceText]) -> int:
    """Write the names for a PREFIX.idx that is there; gives back their number. Raises InputError unless they are as many."""
    index = Path(f"{prefix}.idx")
    with index.open("rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        raise InputError(f"{index}: expected an index of Megatron's, beginning with {_MAGIC!r}; found {head[:9]!r}")
    num_documents = _HEADER.unpack(head)[4] - 1
    with SidecarWriter(prefix) as names:
        for text in texts:
            names.add(_name(text))
        names.finish(index, num_documents)
    return int(num_documents)


@contextlib.contextmanager
def _removed_after(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _name(text: SourceText) -> DocumentName:
    return DocumentName(
        source=text.source, document_id=text.document_id, file=text.file, line=text.line,
        text_sha256=hashlib.sha256(text.text.encode()).digest(),
    )  # fmt: skip


def _index(lengths: "array[int]", dtype: np.dtype[np.generic]) -> bytes:
    """A sequence for each document that has tokens; the others are a number without one."""
    all_lengths = np.frombuffer(lengths, np.int32)
    filled = all_lengths[all_lengths > 0].astype("<i4")
    pointers = np.zeros(len(filled), "<i8")
    np.cumsum(filled[:-1].astype("<i8") * dtype.itemsize, out=pointers[1:])
    documents = np.concatenate([[0], np.cumsum(all_lengths > 0)]).astype("<i8")
    code = _UINT16 if dtype.itemsize == 2 else _INT32
    header = _HEADER.pack(_MAGIC, 1, code, len(filled), len(documents))
    return header + filled.tobytes() + pointers.tobytes() + documents.tobytes()
