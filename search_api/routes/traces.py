"""Traces: one, several in a stream, or many as a job."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from indexer.reader import IndexReader
from indexer.trace.trace import TraceOptions, trace
from search_api.negotiation import NDJSON, json_bytes
from search_api.permissions import Action
from search_api.problems import Problem
from search_api.request import Answer, AuthorizedRequest, authorized
from search_api.request_models import TraceBatchRequest, TraceItem, TraceRequest
from search_api.routes.openapi import answers_json, answers_lines
from search_api.schemas import TraceAnswer
from train_hooks.export_format.errors import KisekiError

__all__ = ["router", "trace_line"]

router = APIRouter(prefix="/v1", tags=["trace"])


@router.post("/trace", summary="Text → spans → exposures → documents", **answers_json(TraceAnswer))
async def post_trace(body: TraceRequest, request: Annotated[AuthorizedRequest, authorized(Action.TRACE)]) -> Response:
    return await request.answer(body.run, lambda reader: trace_of(request, reader, body), body)


@router.post(
    "/trace:batch",
    summary="Several traces, each sent as it is done",
    response_class=StreamingResponse,
    **answers_lines("One line an item: its `index`, and its `trace` or `problem`"),
)
async def post_traces(
    body: TraceBatchRequest, request: Annotated[AuthorizedRequest, authorized(Action.TRACE, (NDJSON,))]
) -> Response:
    reader = request.service.runs.current(request.run_id(body.run))

    async def sent() -> AsyncIterator[bytes]:
        for index, item in enumerate(body.items):
            try:
                line, _ = await request.service.workers.run(lambda i=index, of=item: trace_line(request, reader, i, of))  # type: ignore[misc]
            except Problem as problem:
                line = json_bytes({"index": index, "problem": problem.to_json()}) + b"\n"
            yield line

    return StreamingResponse(sent(), media_type=NDJSON, headers={"Cache-Control": "no-store"})


def trace_of(request: AuthorizedRequest, reader: IndexReader, item: TraceItem) -> Answer:
    """A trace as the API answers it."""
    prompt, text = item.prompt_and_text()
    context_tokens = request.context_tokens(item.context_tokens)
    options = TraceOptions(
        min_length=item.min_length, selection=request.selection(item), max_spans=item.max_spans, num_hits=item.num_hits,
        context_tokens=context_tokens,
    )  # fmt: skip
    found = trace(reader, text, token_ids=item.token_ids, prompt=prompt, options=options)
    shown = sum(len(span.hits) * (span.num_tokens + 2 * context_tokens) for span in found.spans)
    fields: dict[str, Any] = {**found.to_json(), "snippets_cut": context_tokens < item.context_tokens}
    return Answer(fields=fields, shards_searched=found.shards_searched, truncated=found.truncated, num_tokens=shown)


def trace_line(request: AuthorizedRequest, reader: IndexReader, index: int, item: TraceItem) -> tuple[bytes, bool]:
    """One line of a batch or a job, and whether it is a problem."""
    try:
        request.service.gate.readmit(request.access)
        answer = reader.retry_without_damaged(lambda: trace_of(request, reader, item))
    except (KisekiError, Problem) as error:
        problem = error if isinstance(error, Problem) else Problem.of(error)
        return json_bytes({"index": index, "problem": problem.to_json()}) + b"\n", True
    request.charge(reader.info.run_id, item, answer.num_tokens)
    return json_bytes({"index": index, "trace": {**answer.fields, **request.envelope(reader, answer)}}) + b"\n", False
