"""What answers look like, for the OpenAPI description. Answers are not checked against them; tests and schemathesis are.

Most have the fields of the record that a route answers with (`fields_of`).

Every answer about a run says what it was asked of, and whether anything is missing (`Envelope`).
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from indexer.answers.coverage import Coverage
from indexer.documents.history import DocumentHistory
from indexer.search.records import SearchResult
from indexer.steps import steps
from indexer.steps.completeness import Completeness
from indexer.trace import records as traces
from search_api.record_models import fields_of
from train_hooks.export_format import records as export_records
from train_hooks.export_format.origin import Origin
from train_hooks.export_format.reading.summaries import EvidenceShares

__all__ = [
    "Attempt",
    "AttemptsAnswer",
    "CountAnswer",
    "DocumentAnswer",
    "Envelope",
    "ExplainAnswer",
    "GapsAnswer",
    "HitsAnswer",
    "InfinigramAnswer",
    "JobAnswer",
    "ProblemAnswer",
    "RunAnswer",
    "RunsAnswer",
    "SearchAnswer",
    "SequenceAnswer",
    "SequencesAnswer",
    "SqlAnswer",
    "StepsAnswer",
    "TraceAnswer",
]


class Closed(BaseModel):
    """A record without other fields."""

    model_config = ConfigDict(extra="forbid")


class ProblemAnswer(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] = []


@fields_of(Coverage)
class Envelope(Closed):
    """What every answer says of itself.

    count_relation: `gte` where a shard failed, so that counts may be too small. truncated: more was found than is listed.
    """

    shards_searched: Annotated[int, Field(description="Shards that the selection takes something of.")]
    failures: list[str]


@fields_of(export_records.Segment, without=["loss"])
class Segment(Closed):
    """Contiguous part of a document in a packed sequence; in tokens."""


@fields_of(traces.Hit)
class Hit(Closed):
    global_step: int
    dp_rank: int


@fields_of(traces.Span)
class Span(Closed):
    pass


@fields_of(traces.TracedDocument)
class Document(Closed):
    pass


@fields_of(traces.JoinedSpans)
class Joined(Closed):
    pass


@fields_of(traces.Trace)
class TraceAnswer(Envelope):
    """Spans of the text, their exposures, places and documents."""

    snippets_cut: Annotated[bool, Field(description="Contexts are shorter than asked: the limit `snippet_tokens`.")]


class CountAnswer(Envelope):
    """How often exactly this n-gram occurs."""

    count: int
    token_ids: list[int]


class NgramHit(Closed):
    """One place of an n-gram. source and document_id: of the segment that it begins in, empty where that is not known."""

    address: str
    attempt: int
    global_step: int
    dp_rank: int
    offset: int
    num_tokens: int
    source: str
    document_id: str
    document_token_offset: int | None
    context_before: str
    context_after: str


class HitsAnswer(Envelope):
    """A page of places, by attempt, step, rank, micro-batch, slot and offset."""

    hits: list[NgramHit]
    next_cursor: str | None
    token_ids: list[int]
    snippets_cut: bool


class SequenceSegment(Closed):
    """A segment with its text. redacted: hidden from this key, or taken down; then it says where it stands, and no more."""

    start: int
    length: int
    source: str | None
    document_id: str | None
    document_token_offset: int | None
    text: str | None
    redacted: bool


class Sequence(Closed):
    """A packed sequence as the model saw it. token_ids: null where redacted. text: U+2588 for each token that is."""

    address: str
    generation: int
    token_ids: list[int | None]
    text: str | None
    segments: list[SequenceSegment]
    redacted: bool


class SequenceAnswer(Envelope, Sequence):
    """One packed sequence and its row. before, after: its neighbours on the same rank, in the same attempt.

    leaf: the hash that the export committed, hexadecimal; it was checked where the server has the run's secret. token_texts,
    loss_mask, loss_mask_of: with `tokens=true`; the tensor that the mask was taken from, where the trainer gave one.
    evidence: how its tokens are known. matched: how it was tied to a forward. relation: how what the forward got differs
    in form. Evidence and matched are null where the export did not record them.
    """

    status: Literal["applied", "skipped_update", "skipped_data", "rerun"]
    sample_index: int | None
    loss: float | None
    evidence: Literal["forward", "loader", "declared"] | None
    matched: Literal["whole", "slice", "count"] | None
    relation: str | None
    leaf: str
    before: str | None
    after: str | None
    token_texts: list[str | None] | None
    loss_mask: list[bool | None] | None
    loss_mask_of: str | None


class SequencesAnswer(Envelope):
    """Packed sequences in the order of the addresses; those that the index does not hold are in `missing`."""

    sequences: list[Sequence]
    missing: list[str]
    next_cursor: str | None


@fields_of(Origin, without=["details"], descriptions={"what": "What was taken for it."})
class RunOrigin(Closed):
    """Where a run's rows come from: observed by the hook, imported from somebody else's record, or recomputed by nobody's."""


@fields_of(
    EvidenceShares,
    descriptions={
        "forward": "Seen in the forward call.",
        "loader": "As the data loader yielded them.",
        "declared": "Handed over by the trainer or an importer.",
        "whole": "The forward got all tokens.",
        "slice": "The forward got a declared part of the tokens.",
        "count": "What a forward got was not seen.",
    },
)
class Shares(Closed):
    """How sequences are known, in numbers of them. What the first three leave of num_rows is not recorded, nor is what the
    last three leave.
    """


class Run(Closed):
    """A run and its index. Numbers of rows are of what the key may see."""

    run_id: str
    origin: RunOrigin
    generation: int
    shards_total: int
    shards_failed: int
    sequence_length: Annotated[int, Field(description="Tokens of a sequence, or the most, with `shorter_rows`.")]
    shorter_rows: Annotated[bool, Field(description="Whether sequences may be shorter than sequence_length.")]
    vocab_size: int
    num_sequences: int
    num_tokens: int
    shares: Shares
    last_step: int
    has_tokenizer: bool


class RunsAnswer(Closed):
    """The runs that the key may ask."""

    runs: list[Run]


class Attempt(Closed):
    """One process-group lifetime of a run; the canonical steps are those on the lineage of the latest attempt."""

    attempt: int
    parent_attempt: int | None
    resume_step: int
    num_writers: int
    started: str
    export_format_version: int
    barrier_step: Annotated[int | None, Field(description="All steps up to it were durable on every rank.")]
    first_step: int | None
    last_step: int | None
    canonical: bool
    canonical_first_step: int | None
    canonical_last_step: int | None


class RunAnswer(Run):
    """A run with its attempts."""

    attempts: list[Attempt]


class AttemptsAnswer(Envelope):
    """Attempts as rows."""

    attempts: list[Attempt]
    next_cursor: str | None


class Gap(Closed):
    """Rows of a step that were not exported, and why."""

    attempt: int
    global_step: int
    dp_rank: int
    num_rows: int
    reason: str | None


@fields_of(Completeness)
class GapsAnswer(Envelope):
    """What a run misses; the first 1,000 gaps. num_missing: canonical steps up to the last one of which nothing is indexed."""

    gaps: list[Gap]
    next_cursor: str | None


class JobAnswer(Closed):
    """A job. state: `waiting`, `running`, `done`, `cancelled`, `failed`."""

    job: str
    state: Literal["waiting", "running", "done", "cancelled", "failed"]
    num_items: int
    num_done: int
    num_problems: int
    created_unix_s: float
    expires_unix_s: float | None
    detail: str | None


class InfinigramAnswer(BaseModel):
    """As infini-gram documents it for the type of query; `latency` in ms."""

    latency: float


class SearchHit(Closed):
    """A segment that matches: tokens [start, end) of the sequence. highlights: [start, end) in the segment's text."""

    address: str
    global_step: int
    dp_rank: int
    start: int
    end: int
    source: str
    document_id: str
    document_token_offset: int | None
    score: float | None
    snippet: str | None
    snippet_start: int | None
    highlights: list[list[int]]


@fields_of(SearchResult, without=["selection"])
class SearchAnswer(Envelope):
    """A page of matching segments. count: of segments, exact where `count_relation` is `eq`."""

    facets: dict[str, Any] | None
    hits: list[SearchHit]
    snippets_cut: bool


@fields_of(steps.Step)
class Step(Closed):
    """A step. A metric that is not finite is null, and named in `spikes`, whose numbers are texts."""

    spikes: list[dict[str, str]]


class StepsAnswer(Envelope):
    """A page of steps, by step and attempt. num_steps, num_spikes: with `max_points`, of all that were asked for."""

    steps: list[Step]
    num_steps: int | None
    num_spikes: int | None
    next_cursor: str | None


class ExplainAnswer(Envelope):
    """What distinguishes a step; `indexer.steps.explain.records` has the fields."""

    model_config = ConfigDict(extra="allow")

    global_step: int
    attempt: int
    features: list[dict[str, Any]]
    sources: list[dict[str, Any]]
    ngrams: list[dict[str, Any]]
    documents: list[dict[str, Any]]
    rows: list[dict[str, Any]]


class Exposure(Closed):
    """A segment of the document in one sequence. num_new_tokens: those that no earlier exposure had."""

    address: str
    global_step: int
    dp_rank: int
    status: str
    canonical: bool
    start: int
    length: int
    document_token_offset: int
    num_new_tokens: int
    text: str | None


@fields_of(DocumentHistory, without=["selection", "next"])
class DocumentAnswer(Envelope):
    """A page of the exposures of a document, and what training saw of it in all."""

    exposures: list[Exposure]
    next_cursor: str | None


class SqlAnswer(Envelope):
    """Rows of a query. Times are ISO 8601, bytes hexadecimal, numbers that are none texts."""

    rows: list[dict[str, Any]]
    columns: list[str]
    next_cursor: str | None
