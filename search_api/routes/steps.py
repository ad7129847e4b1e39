"""Steps, their metrics and spikes, and what distinguishes one of them."""

from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Query, Response

from indexer.explain import explain_step
from indexer.index_reader import IndexReader
from indexer.steps import read_steps
from search_api.answers import ExplainAnswer, StepsAnswer
from search_api.asks import Answer, Ask, asks
from search_api.keys import Action
from search_api.models import ExplainQuery, StepsQuery
from search_api.negotiation import ROW_FORMATS, Rows
from search_api.routes.documented import one, rows

__all__ = ["router"]

router = APIRouter(prefix="/v1/steps", tags=["steps"])

_INT, _TEXT, _FLOAT = pa.int64(), pa.string(), pa.float64()
_SPIKE = pa.struct([("metric", _TEXT), ("value", _TEXT), ("expected", _TEXT), ("deviations", _TEXT)])
_SCHEMA = pa.schema(
    [
        ("attempt", _INT), ("global_step", _INT), ("status", _TEXT), ("canonical", pa.bool_()), ("loss", _FLOAT),
        ("lr", _FLOAT), ("grad_norm", _FLOAT), ("num_tokens", _INT), ("num_sequences", _INT), ("unix_time_s", _FLOAT),
        ("spikes", pa.list_(_SPIKE)),
    ]
)  # fmt: skip
_METRICS = ("loss", "lr", "grad_norm", "unix_time_s")


@router.get("", summary="Steps with their metrics and spikes, page by page", **rows(StepsAnswer))
async def list_steps(
    query: Annotated[StepsQuery, Query()], ask: Annotated[Ask, asks(Action.STEPS, ROW_FORMATS)]
) -> Response:
    cursor = ask.read_cursor(query.cursor, query) if query.cursor is not None else None

    def answer(reader: IndexReader) -> Answer:
        after = (-1, -1) if cursor is None else (int(cursor.place[0]), int(cursor.place[1]))
        found = read_steps(
            reader, first_step=max(query.first_step or 0, after[0]), last_step=query.last_step, attempt=query.attempt,
            all_steps=query.all_steps, only_spikes=query.only_spikes,
        )  # fmt: skip
        steps = [step for step in found.to_json()["steps"] if (step["global_step"], step["attempt"]) > after]
        page = [_row(step) for step in steps[: query.limit]]
        following = None
        if len(steps) > len(page):
            following = ask.sign_cursor(reader, query, (page[-1]["global_step"], page[-1]["attempt"]))
        listed = Rows(name="steps", rows=page, schema=_SCHEMA, next_cursor=following)
        return Answer(rows=listed, truncated=following is not None)

    return await ask.answer(query.run, answer, query, cursor=cursor)


@router.get("/{global_step}:explain", summary="What distinguishes the sequences of a step", **one(ExplainAnswer))
async def get_explanation(
    global_step: int, query: Annotated[ExplainQuery, Query()], ask: Annotated[Ask, asks(Action.STEPS)]
) -> Response:
    def answer(reader: IndexReader) -> Answer:
        found = explain_step(
            reader, global_step, window=query.window, attempt=query.attempt, limit=query.limit,
            visibility=ask.access.visibility,
        )  # fmt: skip
        return Answer(fields=found.to_json(), num_tokens=sum(len(ngram.token_ids) for ngram in found.ngrams))

    limit_s = ask.service.settings.limits.explain_deadline_s
    return await ask.answer(query.run, answer, f"step {global_step}", deadline_s=limit_s)


def _row(step: dict[str, Any]) -> dict[str, Any]:
    """A step as a row: metrics that are no finite number are null here and named in its spikes; those are texts."""
    metrics = {name: step[name] if isinstance(step[name], (int, float)) else None for name in _METRICS}
    spikes = [{name: str(value) for name, value in spike.items()} for spike in step["spikes"]]
    return {**step, **metrics, "spikes": spikes}
