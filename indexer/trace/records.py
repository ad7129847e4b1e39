"""What a trace returns. `to_json` gives the same as plain data, which the command line, the API and the pages share."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from indexer.answers.coverage import CountRelation, Coverage
from indexer.answers.plain_data import plain_data
from indexer.selection.rows import Selection
from train_hooks.export_format.records import Segment, SequenceAddress

__all__ = ["Hit", "JoinedSpans", "Span", "Trace", "TracedDocument"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One place where a span occurs: tokens [offset, offset + span length) of the sequence at `address`.

    num_tokens_before, num_tokens_after: tokens of the sequence on either side; 0 where its cut ends the span.
    segments: the segments it touches, two or more where the packing put documents side by side inside it.
    """

    address: SequenceAddress
    offset: int
    num_tokens_before: int
    num_tokens_after: int
    segments: tuple[Segment, ...]
    document_token_offset: int | None
    context_before: str
    context_after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A maximal span: tokens [start, end), characters [char_start, char_end) of the text.

    token_ids are what was found. They are the text's own at [start, end), unless a span begins with a word that has other
    tokens in the middle of a text than at its start; then start and end say which of the text's tokens it covers.

    count: exposures in the selected rows. rarity_rank: place among the selected spans, 0 the rarest; None where the span
    was not selected and has no hits listed. dp_ranks: None where there are too many hits to look at each. exposures: by
    bin of steps (`Trace.step_edges`), for selected spans.
    """

    start: int
    end: int
    char_start: int | None
    char_end: int | None
    text: str
    token_ids: tuple[int, ...]
    num_tokens: int
    count: int
    count_relation: CountRelation
    log_probability: float
    rarity_rank: int | None
    first_step: int
    last_step: int
    dp_ranks: tuple[int, ...] | None
    exposures: tuple[int, ...]
    hits: tuple[Hit, ...]
    hits_truncated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class TracedDocument:
    """A document that listed hits lie in: its spans (by index), how many tokens they cover, relevance to what was asked."""

    source: str
    document_id: str
    spans: tuple[int, ...]
    num_tokens: int
    relevance: float


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedSpans:
    """Two spans (by index) that are one passage of a document, which the cut between packed sequences divided."""

    first: int
    second: int
    source: str
    document_id: str
    num_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace(Coverage):
    """The answer to one trace, with what it was asked of."""

    min_length: int
    selection: Selection
    text: str
    num_tokens: int
    num_tokens_covered: int
    step_edges: tuple[int, ...]
    spans: tuple[Span, ...]
    joined: tuple[JoinedSpans, ...]
    documents: tuple[TracedDocument, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data; sequence addresses are texts. What is hidden from the asker is not named."""
        document: dict[str, Any] = plain_data(dataclasses.replace(self, selection=Selection()))
        document["selection"] = self.selection.to_json()
        for span, plain in zip(self.spans, document["spans"], strict=True):
            for hit, plain_hit in zip(span.hits, plain["hits"], strict=True):
                plain_hit["global_step"] = hit.address.global_step
                plain_hit["dp_rank"] = hit.address.dp_rank
                for segment in plain_hit["segments"]:
                    del segment["loss"]  # it is in the catalog
        return document
