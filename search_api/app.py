"""`create_app(settings)`: the routes of /v1. Each translates a request, calls one function, and returns plain data."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from indexer.index_reader import IndexReader
from indexer.trace import trace
from search_api import problems
from search_api.models import TraceRequest
from search_api.runs import Runs
from search_api.settings import Settings
from train_hooks.export_format.records import SequenceAddress

__all__ = ["create_app"]


def create_app(settings: Settings) -> FastAPI:
    """The API over the runs of `settings`. Raises KisekiError where a run cannot be opened."""
    app = FastAPI(
        title="kiseki",
        version="1",
        summary="Traces text to the steps, ranks, sequences and documents of a training run.",
    )
    runs = Runs(settings.run_dirs)
    problems.install(app)
    _limit_bodies(app, settings.max_body_bytes)

    @app.get("/healthz", summary="Whether the process answers")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/runs", summary="The runs of this server")
    def list_runs() -> dict[str, Any]:
        return {"runs": [_run(runs.reader(run_id)) for run_id in runs.ids()]}

    @app.get("/v1/runs/{run_id}", summary="One run: its sizes, attempts and index")
    def get_run(run_id: str) -> dict[str, Any]:
        reader = runs.reader(run_id)
        return {**_run(reader), "attempts": reader.sql("SELECT * FROM attempts ORDER BY attempt")}

    @app.post("/v1/trace", summary="Text → spans → exposures → documents")
    def post_trace(request: TraceRequest) -> JSONResponse:
        prompt, text = request.prompt_and_text()
        found = trace(
            runs.reader(request.run), text, token_ids=request.token_ids, prompt=prompt, options=request.options()
        )
        return JSONResponse(found.to_json())

    @app.get("/v1/sequences/{address:path}", summary="One packed sequence by its address")
    def get_sequence(address: str) -> dict[str, Any]:
        wanted = SequenceAddress.parse(address)
        reader = runs.reader(wanted.run_id)
        return reader.describe(reader.sequence(wanted))

    return app


def _run(reader: IndexReader) -> dict[str, Any]:
    infos = [shard.info for shard in reader.shards]
    return {
        "run_id": reader.info.run_id,
        "generation": reader.generation.number,
        "shards_total": len(reader.generation.shards),
        "shards_failed": len(reader.failed),
        "sequence_length": reader.info.sequence_length,
        "vocab_size": reader.info.vocab_size,
        "num_sequences": sum(info.num_sequences for info in infos),
        "num_tokens": sum(info.num_tokens for info in infos),
        "last_step": max(info.last_step for info in infos),
    }


def _limit_bodies(app: FastAPI, max_body_bytes: int) -> None:
    @app.middleware("http")
    async def limit(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length")
        if request.method == "POST" and (length is None or not length.isdigit() or int(length) > max_body_bytes):
            body = {
                "type": "urn:kiseki:problem:body",
                "title": "Body too large or of unknown length",
                "status": 413,
                "detail": f"expected a body of at most {max_body_bytes} bytes with a Content-Length",
            }
            return JSONResponse(body, status_code=413, media_type="application/problem+json")
        return await call_next(request)
