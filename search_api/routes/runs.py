"""Runs and their attempts."""

import dataclasses
from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Response
from fastapi.responses import Response as PlainResponse

from indexer.reader import IndexReader
from indexer.steps.completeness import completeness
from search_api.keys import Action
from search_api.negotiation import JSON, ROW_FORMATS, Rows, json_bytes
from search_api.request import Answer, Ask, asks
from search_api.routes.documented import one, rows
from search_api.schemas import AttemptsAnswer, GapsAnswer, RunAnswer, RunsAnswer
from train_hooks.export_format.origin import origin_of

__all__ = ["router"]

router = APIRouter(prefix="/v1/runs", tags=["runs"])

_COLUMNS = (
    "attempt, parent_attempt, resume_step, num_writers, started, export_format_version, barrier_step, first_step, last_step, "
    "canonical, canonical_first_step, canonical_last_step"
)
MAX_GAPS = 1000
_INT = pa.int64()
_SCHEMA = pa.schema(
    [
        ("attempt", _INT), ("parent_attempt", _INT), ("resume_step", _INT), ("num_writers", _INT), ("started", pa.string()),
        ("export_format_version", _INT), ("barrier_step", _INT), ("first_step", _INT), ("last_step", _INT),
        ("canonical", pa.bool_()), ("canonical_first_step", _INT), ("canonical_last_step", _INT),
    ]
)  # fmt: skip

_GAPS_SCHEMA = pa.schema(
    [("attempt", _INT), ("global_step", _INT), ("dp_rank", _INT), ("num_rows", _INT), ("reason", pa.string())]
)


@router.get("", summary="The runs that the key may ask", **one(RunsAnswer))
async def list_runs(ask: Annotated[Ask, asks(Action.RUNS)]) -> Response:
    def describe() -> Response:
        return PlainResponse(json_bytes({"runs": [_run(ask, run_id) for run_id in ask.run_ids()]}), media_type=JSON)

    return await ask.service.workers.run(describe)


@router.get("/{run_id}", summary="One run: its sizes, index and attempts", **one(RunAnswer))
async def get_run(run_id: str, ask: Annotated[Ask, asks(Action.RUNS)]) -> Response:
    wanted = ask.run_id(run_id)

    def describe() -> Response:
        attempts = _attempts(ask.service.runs.current(wanted))
        return PlainResponse(json_bytes({**_run(ask, wanted), "attempts": attempts}), media_type=JSON)

    return await ask.service.workers.run(describe)


@router.get("/{run_id}/attempts", summary="The attempts of a run", **rows(AttemptsAnswer))
async def list_attempts(run_id: str, ask: Annotated[Ask, asks(Action.RUNS, ROW_FORMATS)]) -> Response:
    def answer(reader: IndexReader) -> Answer:
        return Answer(rows=Rows(name="attempts", rows=_attempts(reader), schema=_SCHEMA))

    return await ask.answer(run_id, answer, run_id)


@router.get("/{run_id}/gaps", summary="What a run misses: rows that were not exported, and steps", **rows(GapsAnswer))
async def list_gaps(run_id: str, ask: Annotated[Ask, asks(Action.RUNS, ROW_FORMATS)]) -> Response:
    def answer(reader: IndexReader) -> Answer:
        found = completeness(reader, MAX_GAPS)
        more = {name: value for name, value in dataclasses.asdict(found).items() if name != "gaps"}
        return Answer(
            rows=Rows(name="gaps", rows=found.gaps, schema=_GAPS_SCHEMA, more=more),
            truncated=len(found.gaps) < found.num_gaps,
        )

    return await ask.answer(run_id, answer, run_id)


def _run(ask: Ask, run_id: str) -> dict[str, Any]:
    reader = ask.service.runs.current(run_id)
    num_sequences, num_tokens = reader.visible_sizes(ask.access.visibility)
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
        "shares": dataclasses.asdict(reader.evidence_shares(ask.access.visibility)),
        "last_step": max(shard.info.last_step for shard in reader.shards),
        "has_tokenizer": reader.info.tokenizer_file is not None,
    }


def _attempts(reader: IndexReader) -> list[dict[str, Any]]:
    found = reader.sql(f"SELECT {_COLUMNS} FROM attempts ORDER BY attempt")
    return [{**row, "started": row["started"].isoformat() + "Z"} for row in found]
