"""Jobs: many traces in the background, with progress as server-sent events."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from indexer.answers.deadline import deadline
from search_api.jobs import Item, Job
from search_api.negotiation import JSON, NDJSON, json_bytes
from search_api.permissions import Action
from search_api.request import AuthorizedRequest, authorized
from search_api.request_models import JobRequest, TraceItem
from search_api.routes.openapi import EVENTS, answers_events, answers_json, answers_lines
from search_api.routes.traces import trace_line
from search_api.schemas import JobAnswer

__all__ = ["router"]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

RequestForJobs = Annotated[AuthorizedRequest, authorized(Action.JOBS)]


@router.post(
    "",
    summary="Trace many texts in the background",
    status_code=202,
    **answers_json(JobAnswer, "The job, not yet done"),
)
async def post_job(body: JobRequest, request: RequestForJobs) -> Response:
    reader = request.service.runs.current(request.run_id(body.run))

    def item(index: int, of: TraceItem) -> Item:
        def traced() -> tuple[bytes, bool]:
            with deadline(request.service.settings.limits.job_item_s):
                return trace_line(request, reader, index, of)

        return traced

    job = request.service.jobs.start(request.access.key_id, [item(index, of) for index, of in enumerate(body.items)])
    return _described(request, job, 202, {"Location": f"/v1/jobs/{job.job}"})


@router.get("/{job}", summary="How far a job is", **answers_json(JobAnswer))
async def get_job(job: str, request: RequestForJobs) -> Response:
    return _described(request, request.service.jobs.find(job, request.access.key_id))


@router.get(
    "/{job}/results",
    summary="What is done of a job",
    response_class=StreamingResponse,
    **answers_lines("One line an item that is done: its `index`, and its `trace` or `problem`"),
)
async def get_results(job: str, request: Annotated[AuthorizedRequest, authorized(Action.JOBS, (NDJSON,))]) -> Response:
    found = request.service.jobs.find(job, request.access.key_id)
    return StreamingResponse(iter(list(found.lines)), media_type=NDJSON, headers={"Cache-Control": "no-store"})


@router.get(
    "/{job}/events",
    summary="The progress of a job, until its end",
    response_class=StreamingResponse,
    **answers_events("Events `progress` and, at last, `end`; the data is the job"),
)
async def get_events(job: str, request: Annotated[AuthorizedRequest, authorized(Action.JOBS, (EVENTS,))]) -> Response:
    found = request.service.jobs.find(job, request.access.key_id)

    async def sent() -> AsyncIterator[bytes]:
        async for state in request.service.jobs.watch(found):
            if state is None:
                yield b": still here\n\n"
                continue
            name = b"end" if state["expires_unix_s"] is not None else b"progress"
            yield b"event: " + name + b"\ndata: " + json_bytes(state) + b"\n\n"

    return StreamingResponse(sent(), media_type=EVENTS, headers={"Cache-Control": "no-store"})


@router.delete("/{job}", summary="Cancel a job, and forget its results", **answers_json(JobAnswer))
async def delete_job(job: str, request: RequestForJobs) -> Response:
    found = request.service.jobs.find(job, request.access.key_id)
    request.service.jobs.remove(found)
    return _described(request, found)


def _described(
    request: AuthorizedRequest, job: Job, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    document = json_bytes(request.service.jobs.describe(job))
    return Response(document, status, {"Cache-Control": "no-store", **(headers or {})}, JSON)
