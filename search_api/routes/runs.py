"""Runs and their attempts."""

from typing import Annotated, Any

from fastapi import APIRouter, Response
from fastapi.responses import Response as PlainResponse

from indexer.answers.plain_data import plain_data
from indexer.reader import IndexReader
from indexer.steps.completeness import completeness
from search_api.negotiation import JSON, ROW_FORMATS, Rows, json_bytes
from search_api.permissions import Action
from search_api.record_models import arrow_schema
from search_api.request import Answer, AuthorizedRequest, authorized
from search_api.routes.openapi import answers_json, answers_rows
from search_api.schemas import Attempt, AttemptsAnswer, Gap, GapsAnswer, RunAnswer, RunsAnswer
from train_hooks.export_format.origin import origin_of

__all__ = ["router"]

router = APIRouter(prefix="/v1/runs", tags=["runs"])

MAX_GAPS = 1000


@router.get("", summary="The runs that the key may ask", **answers_json(RunsAnswer))
async def list_runs(request: Annotated[AuthorizedRequest, authorized(Action.RUNS)]) -> Response:
    def describe() -> Response:
        return PlainResponse(
            json_bytes({"runs": [_run(request, run_id) for run_id in request.run_ids()]}), media_type=JSON
        )

    return await request.service.workers.run(describe)


@router.get("/{run_id}", summary="One run: its sizes, index and attempts", **answers_json(RunAnswer))
async def get_run(run_id: str, request: Annotated[AuthorizedRequest, authorized(Action.RUNS)]) -> Response:
    wanted = request.run_id(run_id)

    def describe() -> Response:
        attempts = _attempts(request.service.runs.current(wanted))
        return PlainResponse(json_bytes({**_run(request, wanted), "attempts": attempts}), media_type=JSON)

    return await request.service.workers.run(describe)


@router.get("/{run_id}/attempts", summary="The attempts of a run", **answers_rows(AttemptsAnswer))
async def list_attempts(
    run_id: str, request: Annotated[AuthorizedRequest, authorized(Action.RUNS, ROW_FORMATS)]
) -> Response:
    def answer(reader: IndexReader) -> Answer:
        return Answer(rows=Rows(name="attempts", rows=_attempts(reader), schema=arrow_schema(Attempt)))

    return await request.answer(run_id, answer, run_id)


@router.get(
    "/{run_id}/gaps", summary="What a run misses: rows that were not exported, and steps", **answers_rows(GapsAnswer)
)
async def list_gaps(
    run_id: str, request: Annotated[AuthorizedRequest, authorized(Action.RUNS, ROW_FORMATS)]
) -> Response:
    def answer(reader: IndexReader) -> Answer:
        found = completeness(reader, MAX_GAPS)
        more = plain_data(found)
        gaps = more.pop("gaps")
        return Answer(
            rows=Rows(name="gaps", rows=gaps, schema=arrow_schema(Gap), more=more),
            truncated=len(found.gaps) < found.num_gaps,
        )

    return await request.answer(run_id, answer, run_id)


def _run(request: AuthorizedRequest, run_id: str) -> dict[str, Any]:
    reader = request.service.runs.current(run_id)
    num_sequences, num_tokens = reader.visible_sizes(request.access.visibility)
    origin = origin_of(reader.info)
    return {
        "run_id": run_id,
        "origin": {"kind": origin.kind.value, "what": origin.what},
        "generation": reader.generation.number,
        "shards_total": len(reader.generation.shards),
        "shards_failed": len(reader.failed),
        "sequence_length": reader.info.sequence_length,
        "shorter_rows": reader.info.shorter_rows,
        "vocab_size": reader.info.vocab_size,
        "num_sequences": num_sequences,
        "num_tokens": num_tokens,
        "shares": plain_data(reader.evidence_shares(request.access.visibility)),
        "last_step": max(shard.info.last_step for shard in reader.shards),
        "has_tokenizer": reader.info.tokenizer_file is not None,
    }


def _attempts(reader: IndexReader) -> list[dict[str, Any]]:
    found = reader.sql(f"SELECT {', '.join(Attempt.model_fields)} FROM attempts ORDER BY attempt")
    return [{**row, "started": row["started"].isoformat() + "Z"} for row in found]
