"""Where documents begin and end in a packed sequence, when nobody says which documents they are.

The segments that come out have no `document_id` and the source `identity unknown`. They tell documents apart, so that spans and
statistics do not run over their edges, and claim nothing else.

- By the end-of-document token: a segment ends behind each. What begins behind one begins its document (offset 0); the first may
  be the rest of a document (offset -1). Separators that follow one another, as padding does, are in no segment.
- By cumulative lengths (`cu_seqlens`): a segment is what is between two of them. Offsets are not known (-1), nor is what comes
  behind the last.
"""

import itertools

import numpy as np
import numpy.typing as npt

from train_hooks.export_format.records import Segment

__all__ = ["UNKNOWN_IDENTITY", "segments_by_eos", "segments_by_lengths"]

UNKNOWN_IDENTITY = "identity unknown"


def segments_by_eos(tokens: npt.NDArray[np.integer], eos: int) -> tuple[Segment, ...]:
    """Segments of a sequence [num_tokens] that end behind each token `eos`, or with the sequence."""
    ends = np.flatnonzero(tokens == eos) + 1
    edges = np.unique(np.concatenate([[0], ends, [len(tokens)]])).tolist()
    return tuple(
        _segment(start, end, -1 if start == 0 else 0)
        for start, end in itertools.pairwise(edges)
        if end - start > 1 or tokens[start] != eos
    )


def segments_by_lengths(lengths: npt.NDArray[np.integer], num_tokens: int) -> tuple[Segment, ...]:
    """Segments between cumulative lengths, such as [0, 12, 40]; negative, repeated and too large ones are no matter."""
    inside = np.unique(np.clip(lengths[lengths >= 0], 0, num_tokens)).tolist()
    edges = inside if inside and inside[0] == 0 else [0, *inside]
    return tuple(_segment(start, end, -1) for start, end in itertools.pairwise(edges))


def _segment(start: int, end: int, offset: int) -> Segment:
    return Segment(
        start=start, length=end - start, source=UNKNOWN_IDENTITY, document_id="", document_token_offset=offset
    )
