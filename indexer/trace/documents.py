"""Documents behind a trace: grouped, ranked, and spans joined that a packed-sequence cut divided."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from indexer.answers.deadline import check_deadline
from indexer.reader import IndexReader
from indexer.selection.visibility import EVERYTHING, Visibility
from indexer.trace.records import Hit, JoinedSpans, Span, TracedDocument
from train_hooks.export_format.records import Segment

__all__ = ["document_ids", "join_spans", "rank_documents"]

K1, B = 1.2, 0.75


def document_ids(hit: Hit) -> list[tuple[str, str]]:
    """(source, document_id) of each segment that a hit touches."""
    return [(segment.source, segment.document_id) for segment in hit.segments]


def rank_documents(
    reader: IndexReader, spans: Sequence[Span], query_ids: npt.NDArray[np.int64], visibility: Visibility = EVERYTHING
) -> tuple[TracedDocument, ...]:
    """Documents of the listed hits, by how many tokens of the output they cover, then by relevance to prompt and output.

    relevance: BM25 of the document's listed segments against the token ids `query_ids`, with unigram frequencies as idf.
    """
    in_query = np.zeros(reader.info.vocab_size, np.bool_)
    in_query[query_ids] = True
    terms = _Terms(
        in_query=in_query, idf=-reader.log_probabilities(visibility), visibility=visibility,
        mean_length=_mean_length(reader, visibility),
    )  # fmt: skip
    covered: dict[tuple[str, str], set[int]] = {}
    hits: dict[tuple[str, str], list[Hit]] = {}
    for index, span in enumerate(spans):
        for hit in span.hits:
            for document in document_ids(hit):
                covered.setdefault(document, set()).add(index)
                hits.setdefault(document, []).append(hit)
    documents = [
        TracedDocument(
            source=source,
            document_id=document_id,
            spans=tuple(sorted(indices)),
            num_tokens=_num_covered([spans[index] for index in indices]),
            relevance=round(_relevance(reader, (source, document_id), hits[source, document_id], terms), 3),
        )
        for (source, document_id), indices in covered.items()
    ]
    return tuple(sorted(documents, key=lambda d: (-d.num_tokens, -d.relevance, d.source, d.document_id)))


def _num_covered(spans: Sequence[Span]) -> int:
    """Tokens of the output under the spans; what two of them share counts once."""
    total, furthest = 0, 0
    for span in sorted(spans, key=lambda span: (span.start, span.end)):
        total += max(0, span.end - max(span.start, furthest))
        furthest = max(furthest, span.end)
    return total


def _relevance(reader: IndexReader, document: tuple[str, str], hits: Sequence[Hit], terms: "_Terms") -> float:
    """BM25 over the visible tokens of the document's listed segments."""
    pieces: dict[tuple[str, int], npt.NDArray[np.unsignedinteger]] = {}
    for hit in hits:
        check_deadline()
        sequence = reader.sequence_at(*reader.locate(hit.address))
        visible = reader.visible_tokens(sequence, terms.visibility)
        for segment in hit.segments:
            if (segment.source, segment.document_id) == document:
                place = slice(segment.start, segment.start + segment.length)
                pieces[str(hit.address), segment.start] = sequence.tokens[place][visible[place]]
    tokens = np.concatenate(list(pieces.values()))
    found, frequency = np.unique(tokens[terms.in_query[tokens]], return_counts=True)
    length = len(tokens) / terms.mean_length
    return float(
        (terms.idf[found] * frequency * (K1 + 1) / (frequency + K1 * (1 - B + B * length))).sum()
        / max(1, int(np.count_nonzero(terms.in_query)))
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Terms:
    """What documents are compared with: bool [vocab_size] the tokens of prompt and output, f64 [vocab_size] idf.

    mean_length: tokens of a sequence.
    """

    in_query: npt.NDArray[np.bool_]
    idf: npt.NDArray[np.float64]
    visibility: Visibility
    mean_length: float


def _mean_length(reader: IndexReader, visibility: Visibility) -> float:
    if not reader.info.shorter_rows:
        return reader.info.sequence_length
    num_sequences, num_tokens = reader.visible_sizes(visibility)
    return num_tokens / max(1, num_sequences) or 1.0


def join_spans(spans: Sequence[Span]) -> tuple[JoinedSpans, ...]:
    """Neighbouring spans whose hits continue one another in a document that packing cut in two.

    One hit ends with its sequence, the other begins one, and the second goes on in the document where the first stopped.
    """
    joined: list[JoinedSpans] = []
    for first, second in zip(range(len(spans)), range(1, len(spans)), strict=False):
        check_deadline()
        before, after = spans[first], spans[second]
        if before.char_end is not None and before.char_end != after.char_start:
            continue
        if before.char_end is None and before.end != after.start:
            continue
        for segment in _continued(before, after):
            found = JoinedSpans(
                first=first,
                second=second,
                source=segment.source,
                document_id=segment.document_id,
                num_tokens=before.num_tokens + after.num_tokens,
            )
            if found not in joined:
                joined.append(found)
    return tuple(joined)


def _continued(before: Span, after: Span) -> list[Segment]:
    ends = {}
    for hit in before.hits:
        if hit.num_tokens_after == 0 and hit.segments and hit.segments[-1].document_id:
            last = hit.segments[-1]
            ends[last.source, last.document_id, last.document_token_offset + last.length] = last
    found = []
    for hit in after.hits:
        if hit.num_tokens_before == 0 and hit.segments:
            begin = hit.segments[0]
            segment = ends.get((begin.source, begin.document_id, begin.document_token_offset))
            if segment is not None:
                found.append(segment)
    return found
