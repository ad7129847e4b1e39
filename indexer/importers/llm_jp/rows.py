"""From lines of a dump to rows of an export, and back.

- All lines of an iteration on a rank are one micro-batch, since the dump does not tell them apart; slots are in their
  order.
- Segments: the dump names the documents of a sequence, but not where each begins. With the id of the end-of-document
  token they are cut behind each; where there are as many pieces as documents, each piece is one. Otherwise the whole
  sequence is one segment of all of them, `12+13+14`. At which of its tokens the first document begins nobody knows:
  offset -1.
- `dump/dataset_idx`, `dump/fold` and, where they are not what tokenizer and segments say, `dump/text` (UTF-8) and
  `dump/doc_ids` (JSON) are kept as tensors of the row, so that the line can be written again.
"""

import json
import re
import zlib
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from indexer.importers.llm_jp.dump import DumpRow
from train_hooks.export_format.records import Row, Segment, SequenceAddress, StepStatus, TensorRecord
from train_hooks.export_format.tensors import decode_tensor
from train_hooks.export_format.writing.frames import FrameMaker

__all__ = ["DATASET_IDX", "DOC_IDS", "FOLD", "TEXT", "doc_ids_of", "row_of", "segments_of", "tensor_value"]

DATASET_IDX, DOC_IDS, FOLD, TEXT = "dump/dataset_idx", "dump/doc_ids", "dump/fold", "dump/text"
_NUMBERS = re.compile(r"(?:0|[1-9]\d*)(?:\+(?:0|[1-9]\d*))*", re.ASCII)


def row_of(
    make: FrameMaker, row: DumpRow, address: SequenceAddress, *, dtype: str, eos: int | None, decoded: str | None
) -> Row:
    """The row of a line. decoded: what the run's tokenizer makes of the tokens, None where it has none."""
    tokens = row.tokens.astype(dtype)
    segments = segments_of(row, eos)
    tensors = [_dataset_idx(row.dataset_idx), _fold(row.fold)]
    if doc_ids_of(segments) != list(row.doc_ids):
        tensors.append(_text(DOC_IDS, json.dumps(row.doc_ids)))
    if row.text != decoded:
        tensors.append(_text(TEXT, row.text))
    return make.row(address, tokens, segments, tuple(tensors), sample_index=None, status=StepStatus.APPLIED)


def segments_of(row: DumpRow, eos: int | None) -> tuple[Segment, ...]:
    """The segments of a line, as far as they are known."""
    length = len(row.tokens)
    starts = [0]
    if eos is not None:
        starts += [int(place) + 1 for place in np.flatnonzero(row.tokens[:-1] == eos)]
    if len(starts) != len(row.doc_ids):
        starts = [0]
    together = "+".join(map(str, row.doc_ids))
    names = [together] if len(starts) != len(row.doc_ids) else [str(doc_id) for doc_id in row.doc_ids]
    return tuple(
        Segment(
            start=start,
            length=end - start,
            source=row.dataset_name,
            document_id=name,
            document_token_offset=0 if start else -1,
        )
        for start, end, name in zip(starts, [*starts[1:], length], names, strict=True)
    )


@cache
def _dataset_idx(value: int) -> TensorRecord:
    data = np.array(value, "<i8").tobytes()
    return TensorRecord(name=DATASET_IDX, dtype="<i8", shape=(), encoding="constant", data=data)


@cache
def _fold(value: str) -> TensorRecord:
    array = np.array(value)
    return TensorRecord(
        name=FOLD, dtype=array.dtype.newbyteorder("<").str, shape=(), encoding="constant", data=array.tobytes()
    )


def _text(name: str, value: str) -> TensorRecord:
    data = value.encode("utf-8")
    return TensorRecord(name=name, dtype="|u1", shape=(len(data),), encoding="zlib", data=zlib.compress(data, 1))


def tensor_value(row: Row, name: str) -> npt.NDArray[np.generic] | None:
    """A tensor of a row, None where it has none of the name."""
    for tensor in row.tensors:
        if tensor.name == name:
            return np.asarray(decode_tensor(tensor, row.tokens, row.segments))
    return None


def doc_ids_of(segments: Sequence[Segment]) -> list[int | str]:
    """The documents of a row's segments, in order: numbers where the ids are numbers."""
    found: list[int | str] = []
    for segment in segments:
        if _NUMBERS.fullmatch(segment.document_id):
            found += map(int, segment.document_id.split("+"))
        elif segment.document_id:
            found.append(segment.document_id)
    return found
