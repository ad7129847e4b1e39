"""`create_app(settings)`: routes, problems and the HTTP edge around one `Service`."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.middleware.gzip import GZipMiddleware

from search_api import problems
from search_api.http_edge import HttpEdge
from search_api.problems import MEDIA_TYPE, PROBLEMS
from search_api.routes import (
    documents,
    health,
    infinigram,
    jobs,
    ngrams,
    runs,
    searches,
    sequences,
    sql,
    steps,
    traces,
)
from search_api.schemas import ProblemAnswer
from search_api.service import Service
from search_api.settings import Settings

__all__ = ["create_app"]

GZIP_FROM_BYTES = 1000
_ROUTERS = (
    health.router,
    runs.router,
    traces.router,
    ngrams.router,
    searches.router,
    sequences.router,
    steps.router,
    documents.router,
    sql.router,
    jobs.router,
    infinigram.router,
)


def create_app(settings: Settings) -> FastAPI:
    """The API over the runs of `settings`. Raises KisekiError where a run, the keys or the read log cannot be opened."""
    service = Service.of(settings)
    app = FastAPI(
        title="kiseki",
        version="1",
        summary="Traces text to the steps, ranks, sequences and documents of a training run.",
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.service = service
    problems.install(app)
    for router in _ROUTERS:
        app.include_router(router)
    app.add_middleware(GZipMiddleware, minimum_size=GZIP_FROM_BYTES, compresslevel=5)
    app.add_middleware(HttpEdge, limits=settings.limits, metrics=service.metrics)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    if settings.log:
        _log_to_standard_error()
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Warm up before the first request; then look for new generations until the end."""
    service: Service = app.state.service
    await asyncio.to_thread(service.runs.warm_up)
    watcher = asyncio.create_task(_watch(service))
    try:
        yield
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
        service.close()


async def _watch(service: Service) -> None:
    while True:
        await asyncio.sleep(service.settings.limits.reload_interval_s)
        await asyncio.to_thread(service.runs.reload)
        service.jobs.expire()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description, with every problem that a route may answer, and the key."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes, tags=app.openapi_tags
        )
        schemas = document["components"]["schemas"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        schemas["Problem"] = ProblemAnswer.model_json_schema()
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["responses"].pop("422", None)
                operation["responses"].update(_problem_responses())
                if path.startswith(("/v1", "/compat", "/metrics")):
                    operation["security"] = [{"key": []}, {}]
        app.openapi_schema = document
    return app.openapi_schema


def _problem_responses() -> Mapping[str, Any]:
    """By status, the kinds of problems that have it."""
    kinds: dict[str, list[str]] = {}
    for name, kind in PROBLEMS.items():
        kinds.setdefault(str(kind.status), []).append(f"`{name}`: {kind.title}")
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": "; ".join(texts), "content": {MEDIA_TYPE: {"schema": schema}}}
        for status, texts in kinds.items()
    }


def _log_to_standard_error() -> None:
    """Requests as JSON lines, the server's own words as plain ones."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("kiseki.requests", "kiseki.server"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
