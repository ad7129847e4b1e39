"""Jobs: many traces in the background, with progress as server-sent events."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse

from indexer.deadline import deadline
from search_api.jobs import Item, Job
from search_api.keys import Action
from search_api.models import JobRequest, TraceItem
from search_api.negotiation import JSON, NDJSON, json_bytes
from search_api.request import Ask, asks
from search_api.routes.documented import EVENTS, events, lines, one
from search_api.routes.traces import trace_line
from search_api.schemas import JobAnswer

__all__ = ["router"]

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

AsksForJobs = Annotated[Ask, asks(Action.JOBS)]


@router.post(
    "", summary="Trace many texts in the background", status_code=202, **one(JobAnswer, "The job, not yet done")
)
async def post_job(body: JobRequest, ask: AsksForJobs) -> Response:
    reader = ask.service.runs.current(ask.run_id(body.run))

    def item(index: int, of: TraceItem) -> Item:
        def traced() -> tuple[bytes, bool]:
            with deadline(ask.service.settings.limits.job_item_s):
                return trace_line(ask, reader, index, of)

        return traced

    job = ask.service.jobs.start(ask.access.who, [item(index, of) for index, of in enumerate(body.items)])
    return _described(ask, job, 202, {"Location": f"/v1/jobs/{job.job}"})


@router.get("/{job}", summary="How far a job is", **one(JobAnswer))
async def get_job(job: str, ask: AsksForJobs) -> Response:
    return _described(ask, ask.service.jobs.find(job, ask.access.who))


@router.get(
    "/{job}/results",
    summary="What is done of a job",
    response_class=StreamingResponse,
    **lines("One line an item that is done: its `index`, and its `trace` or `problem`"),
)
async def get_results(job: str, ask: Annotated[Ask, asks(Action.JOBS, (NDJSON,))]) -> Response:
    found = ask.service.jobs.find(job, ask.access.who)
    return StreamingResponse(iter(list(found.lines)), media_type=NDJSON, headers={"Cache-Control": "no-store"})


@router.get(
    "/{job}/events",
    summary="The progress of a job, until its end",
    response_class=StreamingResponse,
    **events("Events `progress` and, at last, `end`; the data is the job"),
)
async def get_events(job: str, ask: Annotated[Ask, asks(Action.JOBS, (EVENTS,))]) -> Response:
    found = ask.service.jobs.find(job, ask.access.who)

    async def sent() -> AsyncIterator[bytes]:
        async for state in ask.service.jobs.watch(found):
            if state is None:
                yield b": still here\n\n"
                continue
            name = b"end" if state["expires_unix_s"] is not None else b"progress"
            yield b"event: " + name + b"\ndata: " + json_bytes(state) + b"\n\n"

    return StreamingResponse(sent(), media_type=EVENTS, headers={"Cache-Control": "no-store"})


@router.delete("/{job}", summary="Cancel a job, and forget its results", **one(JobAnswer))
async def delete_job(job: str, ask: AsksForJobs) -> Response:
    found = ask.service.jobs.find(job, ask.access.who)
    ask.service.jobs.remove(found)
    return _described(ask, found)


def _described(ask: Ask, job: Job, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    document = json_bytes(ask.service.jobs.describe(job))
    return Response(document, status, {"Cache-Control": "no-store", **(headers or {})}, JSON)
