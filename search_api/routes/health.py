"""Whether the server lives, is ready, and how it is doing."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from search_api.negotiation import JSON
from search_api.permissions import Action
from search_api.problems import Problem
from search_api.request import AuthorizedRequest, authorized, service_of
from search_api.service import Service
from train_hooks.export_format.errors import KisekiError

__all__ = ["router"]

router = APIRouter(tags=["server"])
EXPOSITION = "text/plain; version=1.0.0; charset=utf-8"
OpenService = Annotated[Service, Depends(service_of)]


@router.get("/healthz", summary="Whether the process answers")
async def health() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", summary="Whether every run answers in full")
async def ready(service: OpenService) -> dict[str, str]:
    try:
        service.gate.check()
        for run_id in service.runs.ids():
            reader = service.runs.current(run_id)
            reader.check_tombstones()
            if reader.failed:
                raise Problem("incomplete", f"run {run_id}: {len(reader.failed)} shards are damaged")
    except KisekiError as error:
        raise Problem("incomplete", "a file of keys or tombstones cannot be read") from error
    return {"status": "ready"}


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Annotated[AuthorizedRequest, authorized(Action.METRICS, ("text/plain", JSON))]) -> Response:
    return Response(request.service.metrics.text(), media_type=EXPOSITION)
