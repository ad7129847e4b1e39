"""What requests look like. Answers are the records of `indexer`, as plain data."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from indexer.selection import Selection
from indexer.trace import MIN_LENGTH_DEFAULT, TraceOptions
from indexer.trace_input import text_of_messages
from train_hooks.export_format.errors import QueryError

__all__ = ["Message", "TraceRequest"]

Count = Annotated[int, Field(ge=0, le=2**53)]


class Message(BaseModel):
    """A chat message."""

    model_config = ConfigDict(extra="ignore")

    role: Annotated[str, Field(max_length=100)] = "user"
    content: Annotated[str, Field(max_length=500_000)]


class TraceRequest(BaseModel):
    """What to trace (text, token ids, or chat messages whose last one is the output), and which rows count."""

    model_config = ConfigDict(extra="forbid")

    run: Annotated[str | None, Field(description="Run id; may be left out where the server has one run.")] = None
    text: Annotated[str | None, Field(max_length=500_000)] = None
    token_ids: Annotated[list[Count] | None, Field(max_length=100_000)] = None
    messages: Annotated[list[Message] | None, Field(max_length=1000)] = None
    prompt: Annotated[str, Field(max_length=500_000, description="Counts for the relevance of documents.")] = ""
    min_length: Annotated[int, Field(ge=1, le=10_000)] = MIN_LENGTH_DEFAULT
    before_step: Annotated[Count | None, Field(description="Only steps before this one.")] = None
    first_step: Count | None = None
    last_step: Count | None = None
    attempt: Count | None = None
    dp_rank: Count | None = None
    source: Annotated[str | None, Field(max_length=1000)] = None
    document_id: Annotated[str | None, Field(max_length=10_000)] = None
    lineage: Literal["canonical", "all"] = "canonical"
    max_spans: Annotated[int | None, Field(ge=0, le=10_000)] = None
    num_hits: Annotated[int, Field(ge=0, le=100)] = 5
    context_tokens: Annotated[int, Field(ge=0, le=512)] = 24

    def prompt_and_text(self) -> tuple[str, str | None]:
        """(prompt, output). Raises QueryError where both text and messages are given."""
        if self.messages is None:
            return self.prompt, self.text
        if self.text is not None:
            raise QueryError("expected either text or messages, found both")
        return text_of_messages([message.model_dump() for message in self.messages])

    def options(self) -> TraceOptions:
        """The same for `indexer.trace`."""
        return TraceOptions(
            min_length=self.min_length,
            selection=Selection(
                before_step=self.before_step,
                first_step=self.first_step,
                last_step=self.last_step,
                attempt=self.attempt,
                dp_rank=self.dp_rank,
                lineage=self.lineage,
                source=self.source,
                document_id=self.document_id,
            ),
            max_spans=self.max_spans,
            num_hits=self.num_hits,
            context_tokens=self.context_tokens,
        )
