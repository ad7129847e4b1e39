"""Statistics that a sequence alone decides, as columns of a shard's `sequences.parquet`.

`compression_ratio` is bytes by zlib-1 bytes of the *tokens* (u16 or u32, little-endian), not of the text: every run has
tokens, text needs a tokenizer and is twice the bytes. It compares sequences of one run, not runs of different
vocabularies. Ordinary text has 1.2 to 2; noise about 1; what repeats itself far more.
"""

import itertools
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from indexer.statistics.repetition import repeated_shares
from indexer.statistics.scripts import CLASSES, script_shares
from indexer.storage.distinct import distinct
from indexer.tokenizer.token_bytes import TokenBytes

__all__ = ["SCRIPT_COLUMNS", "STATISTIC_FIELDS", "compression_ratios", "sequence_statistics"]

SCRIPT_COLUMNS = tuple(f"{name}_share" for name in CLASSES)
STATISTIC_FIELDS = (
    pa.field("num_segments", pa.int32()),
    pa.field("num_documents", pa.int32()),
    pa.field("compression_ratio", pa.float32()),
    pa.field("repeated_share", pa.float32()),
    *(pa.field(name, pa.float32()) for name in SCRIPT_COLUMNS),
)


def sequence_statistics(
    tokens: NDArray[Any], starts: NDArray[np.int64], segments: pa.Table, bytes_of: TokenBytes | None
) -> pa.Table:
    """STATISTIC_FIELDS of each sequence; nulls for the scripts where the run has no tokenizer.

    Sequence i is tokens[starts[i]:starts[i + 1]]. `segments` has `ordinal`, `source`, `document_id`, by ordinal.
    """
    num = len(starts) - 1
    num_segments, num_documents = _numbers(segments, num)
    scripts: list[pa.Array] = [pa.nulls(num, pa.float32())] * len(CLASSES)
    if bytes_of is not None:
        scripts = [pa.array(column) for column in np.ascontiguousarray(script_shares(tokens, starts, bytes_of).T)]
    arrays = [
        pa.array(num_segments), pa.array(num_documents), pa.array(compression_ratios(tokens, starts)),
        pa.array(repeated_shares(tokens, starts)), *scripts,
    ]  # fmt: skip
    return pa.table(arrays, schema=pa.schema(STATISTIC_FIELDS))


def _numbers(segments: pa.Table, num: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Segments and distinct documents of each sequence."""
    ordinals = segments.column("ordinal").to_numpy()
    names = pc.binary_join_element_wise(segments.column("source"), segments.column("document_id"), "\0")
    if not len(ordinals):
        return np.zeros(num, np.int32), np.zeros(num, np.int32)
    codes = names.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False).astype(np.int64)
    width = int(codes.max()) + 1
    named = distinct(ordinals * width + codes) // width
    return (
        np.bincount(ordinals, minlength=num).astype(np.int32),
        np.bincount(named, minlength=num).astype(np.int32),
    )


def compression_ratios(tokens: NDArray[Any], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Bytes of each sequence by its bytes after zlib level 1, f32; 1 for an empty one."""
    data = np.ascontiguousarray(tokens).view(np.uint8).data
    ratios = np.ones(len(starts) - 1, np.float32)
    bounds = (starts * tokens.itemsize).tolist()
    for ordinal, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if end > begin:
            ratios[ordinal] = (end - begin) / len(zlib.compress(data[begin:end], 1))
    return ratios
