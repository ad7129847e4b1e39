"""What requests look like. Each has an example that runs on the demo's data; unknown fields are refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from indexer.limits import MIN_LENGTH_DEFAULT
from indexer.selection.rows import Selection
from indexer.selection.visibility import Visibility
from indexer.steps.thinned import MIN_POINTS
from indexer.trace.input import text_of_messages
from search_api.settings import REQUEST
from train_hooks.export_format.errors import QueryError

__all__ = [
    "BatchGetRequest",
    "CountRequest",
    "DocumentQuery",
    "ExplainQuery",
    "HitsRequest",
    "JobRequest",
    "Message",
    "NamedDocumentQuery",
    "SearchRequest",
    "SelectionFields",
    "SequenceQuery",
    "SqlRequest",
    "StepFields",
    "StepsQuery",
    "TraceBatchRequest",
    "TraceItem",
    "TraceRequest",
]

EXAMPLE_TEXT = "Desire and expectation rolled into one."
Number = Annotated[int, Field(ge=0, le=2**53)]
Text = Annotated[str, Field(max_length=REQUEST.text_characters)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0, le=2**53, strict=True)]], Field(max_length=REQUEST.token_ids)]
Cursor = Annotated[
    str | None, Field(max_length=2000, description="`next_cursor` of the page before; everything else the same.")
]
RunId = Annotated[
    str | None, Field(max_length=100, description="Run id; may be left out where the key may ask one run alone.")
]


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [fields]})


class Message(BaseModel):
    """A chat message."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Annotated[str, Field(max_length=100)] = "user"
    content: Text


class StepFields(BaseModel):
    """Which steps count. The default is every exposure: applied steps on the canonical lineage."""

    before_step: Annotated[
        Number | None,
        Field(description="Only steps before this one: a checkpoint of step N has seen those before N + 1."),
    ] = None
    first_step: Number | None = None
    last_step: Annotated[Number | None, Field(description="Included.")] = None
    attempt: Annotated[Number | None, Field(description="This attempt alone, superseded or not.")] = None
    dp_rank: Number | None = None
    lineage: Annotated[
        Literal["canonical", "all"], Field(description="`all` takes superseded and skipped steps as well.")
    ] = "canonical"

    def selection(self, visibility: Visibility) -> Selection:
        """The same for `indexer`, of what may be seen. Raises QueryError for steps that fall."""
        names = (StepFields.model_fields | SelectionFields.model_fields).keys() & type(self).model_fields.keys()
        return Selection(visibility=visibility, **{name: getattr(self, name) for name in names})


class SelectionFields(StepFields):
    """Which rows count: steps as above, and documents."""

    source: Annotated[
        str | None, Field(max_length=1000, description="Hits that begin in a document of this source.")
    ] = None
    document_id: Annotated[str | None, Field(max_length=10_000, description="Hits that begin in this document.")] = None


class TraceItem(SelectionFields):
    """One thing to trace: text, token ids, or chat messages whose last one is the output."""

    model_config = _example(text=EXAMPLE_TEXT, min_length=4)

    text: Text | None = None
    token_ids: TokenIds | None = None
    messages: Annotated[list[Message] | None, Field(max_length=REQUEST.messages)] = None
    prompt: Annotated[Text, Field(description="Counts for the relevance of documents alone.")] = ""
    min_length: Annotated[int, Field(ge=1, le=REQUEST.min_length)] = MIN_LENGTH_DEFAULT
    max_spans: Annotated[
        int | None,
        Field(ge=0, le=REQUEST.spans, description="Spans with hits; by default 5% of the tokens, at least 5."),
    ] = None
    num_hits: Annotated[int, Field(ge=0, le=REQUEST.hits)] = 5
    context_tokens: Annotated[int, Field(ge=0, le=REQUEST.context_tokens)] = 24

    def prompt_and_text(self) -> tuple[str, str | None]:
        """(prompt, output). Raises QueryError where both text and messages are given."""
        if self.messages is None:
            return self.prompt, self.text
        if self.text is not None or self.token_ids is not None:
            raise QueryError("expected one of text, token_ids and messages, found several")
        return text_of_messages([message.model_dump() for message in self.messages])


class TraceRequest(TraceItem):
    """What to trace, and in which run."""

    run: RunId = None


class TraceBatchRequest(BaseModel):
    """Several traces of one run."""

    model_config = _example(items=[{"text": EXAMPLE_TEXT, "min_length": 4}])

    run: RunId = None
    items: Annotated[list[TraceItem], Field(min_length=1, max_length=REQUEST.batch_traces)]


class JobRequest(BaseModel):
    """Many traces of one run, to be done in the background."""

    model_config = _example(items=[{"text": EXAMPLE_TEXT, "min_length": 4}])

    run: RunId = None
    items: Annotated[list[TraceItem], Field(min_length=1, max_length=REQUEST.job_traces)]


class NgramRequest(SelectionFields):
    """A token n-gram: text that the run's tokenizer cuts into tokens as it stands, or token ids."""

    run: RunId = None
    text: Text | None = None
    token_ids: TokenIds | None = None


class CountRequest(NgramRequest):
    """What to count."""

    model_config = _example(text="Desire and expectation")


class HitsRequest(NgramRequest):
    """What to find every place of, a page at a time."""

    model_config = _example(text=" and expectation", limit=10)

    limit: Annotated[int, Field(ge=1, le=REQUEST.page_rows)] = 100
    context_tokens: Annotated[int, Field(ge=0, le=REQUEST.context_tokens)] = 24
    cursor: Annotated[
        str | None,
        Field(max_length=2000, description="`next_cursor` of the page before; the rest of the body the same."),
    ] = None


class BatchGetRequest(BaseModel):
    """Sequences by address, of one run."""

    model_config = _example(addresses=["demo-run/a1/s1/r0/m0/q0"])

    addresses: Annotated[
        list[Annotated[str, Field(max_length=300)]], Field(min_length=1, max_length=REQUEST.batch_sequences)
    ]


class SequenceQuery(BaseModel):
    """How much of a sequence."""

    model_config = ConfigDict(extra="forbid")

    tokens: Annotated[bool, Field(description="Each token's text and the loss mask as well.")] = False


class SearchRequest(SelectionFields):
    """What to search for, in the language of docs/query_language.md."""

    model_config = _example(query="desire AND expectation", facets=True)

    run: RunId = None
    query: Annotated[str, Field(max_length=REQUEST.query_characters)]
    limit: Annotated[int, Field(ge=0, le=REQUEST.hits)] = 10
    sort: Literal["relevance", "step", "step_desc"] = "relevance"
    facets: Annotated[bool, Field(description="Count by source, rank and steps as well.")] = False
    cursor: Cursor = None


class SqlRequest(BaseModel):
    """One SELECT over the views of docs/catalog.md."""

    model_config = _example(sql="SELECT global_step, loss FROM steps ORDER BY loss DESC LIMIT 5")

    run: RunId = None
    sql: Annotated[str, Field(min_length=1, max_length=32_768)]


class StepsQuery(BaseModel):
    """Which steps: canonical ones, or those of an attempt, or all."""

    model_config = ConfigDict(extra="forbid")

    run: RunId = None
    first_step: Number | None = None
    last_step: Annotated[Number | None, Field(description="Included.")] = None
    attempt: Number | None = None
    all_steps: Annotated[bool, Field(description="Superseded and skipped steps as well.")] = False
    only_spikes: bool = False
    max_points: Annotated[
        int | None,
        Field(
            ge=MIN_POINTS, le=REQUEST.step_points,
            description="Thinned out to so many, spikes kept beyond that; in one page, whatever `limit` says.",
        ),
    ] = None  # fmt: skip
    limit: Annotated[int, Field(ge=1, le=REQUEST.page_rows)] = 1000
    cursor: Cursor = None


class ExplainQuery(BaseModel):
    """How to explain a step."""

    model_config = ConfigDict(extra="forbid")

    run: RunId = None
    attempt: Number | None = None
    window: Annotated[int, Field(ge=1, le=1000, description="Steps before it that it is compared with.")] = 50
    limit: Annotated[int, Field(ge=1, le=100, description="Rows, n-grams and documents that are listed.")] = 10


class DocumentQuery(StepFields):
    """Which exposures of the document."""

    model_config = ConfigDict(extra="forbid")

    run: RunId = None
    limit: Annotated[int, Field(ge=0, le=REQUEST.page_rows)] = 100
    with_text: bool = True
    cursor: Cursor = None


class NamedDocumentQuery(DocumentQuery):
    """A document by its names, and which of its exposures."""

    source: Annotated[str, Field(max_length=500)]
    document_id: Annotated[str, Field(max_length=2000)]  # with all of it percent-encoded a URL stays below 64 KiB
