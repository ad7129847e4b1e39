"""What requests look like. Answers are the records of `indexer`, as plain data."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from indexer.selection import Selection
from indexer.trace import MIN_LENGTH_DEFAULT, TraceOptions

__all__ = ["TraceRequest"]

Count = Annotated[int, Field(ge=0, le=2**53)]


class TraceRequest(BaseModel):
    """Text or token ids to trace, and which rows count."""

    model_config = ConfigDict(extra="forbid")

    run: Annotated[str | None, Field(description="Run id; may be left out where the server has one run.")] = None
    text: Annotated[str | None, Field(max_length=500_000)] = None
    token_ids: Annotated[list[Count] | None, Field(max_length=100_000)] = None
    min_length: Annotated[int, Field(ge=1, le=10_000)] = MIN_LENGTH_DEFAULT
    before_step: Annotated[Count | None, Field(description="Only steps before this one.")] = None
    first_step: Count | None = None
    last_step: Count | None = None
    attempt: Count | None = None
    dp_rank: Count | None = None
    lineage: Literal["canonical", "all"] = "canonical"
    max_spans: Annotated[int | None, Field(ge=0, le=10_000)] = None
    num_hits: Annotated[int, Field(ge=0, le=100)] = 5
    context_tokens: Annotated[int, Field(ge=0, le=512)] = 24

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
            ),
            max_spans=self.max_spans,
            num_hits=self.num_hits,
            context_tokens=self.context_tokens,
        )
