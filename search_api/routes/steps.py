"""Steps, their metrics and spikes, and what distinguishes one of them."""

from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Query, Response

from indexer.reader import IndexReader
from indexer.steps.explain import explain_step
from indexer.steps.steps import read_steps
from indexer.steps.thinned import thin_steps
from search_api.negotiation import ROW_FORMATS, Rows
from search_api.permissions import Action
from search_api.record_models import arrow_schema
from search_api.request import Answer, AuthorizedRequest, authorized
from search_api.request_models import ExplainQuery, StepsQuery
from search_api.routes.openapi import answers_json, answers_rows
from search_api.schemas import ExplainAnswer, Step, StepsAnswer

__all__ = ["router"]

router = APIRouter(prefix="/v1/steps", tags=["steps"])

_SPIKE = pa.struct([(name, pa.string()) for name in ("metric", "value", "expected", "deviations")])
_SCHEMA = arrow_schema(Step, spikes=pa.list_(_SPIKE))
_METRICS = ("loss", "lr", "grad_norm", "unix_time_s")


@router.get(
    "", summary="Steps with their metrics and spikes, page by page, or thinned out", **answers_rows(StepsAnswer)
)
async def list_steps(
    query: Annotated[StepsQuery, Query()], request: Annotated[AuthorizedRequest, authorized(Action.STEPS, ROW_FORMATS)]
) -> Response:
    cursor = request.read_cursor(query.cursor, query) if query.cursor is not None else None

    def page(reader: IndexReader) -> Answer:
        after = None if cursor is None else (int(cursor.place[0]), int(cursor.place[1]))
        found = read_steps(reader, after=after, limit=query.limit + 1, **_range(query))
        steps = [_row(step) for step in found.to_json()["steps"]]
        following = None
        if len(steps) > query.limit:
            last = steps[query.limit - 1]
            following = request.sign_cursor(reader, query, (last["global_step"], last["attempt"]))
        more = {"num_steps": None, "num_spikes": None}
        listed = Rows(name="steps", rows=steps[: query.limit], schema=_SCHEMA, next_cursor=following, more=more)
        return Answer(rows=listed, truncated=following is not None)

    def thinned(reader: IndexReader) -> Answer:
        found = thin_steps(reader, query.max_points or 0, **_range(query))
        steps = [_row(step) for step in found.steps.to_json()["steps"]]
        more = {"num_steps": found.num_steps, "num_spikes": found.num_spikes}
        return Answer(
            rows=Rows(name="steps", rows=steps, schema=_SCHEMA, more=more), truncated=len(steps) < found.num_steps
        )

    if query.max_points is None:
        return await request.answer(query.run, page, query, cursor=cursor)
    limit_s = request.service.settings.limits.explain_deadline_s
    return await request.answer(query.run, thinned, query, cursor=cursor, deadline_s=limit_s)


def _range(query: StepsQuery) -> dict[str, Any]:
    names = ("first_step", "last_step", "attempt", "all_steps", "only_spikes")
    return {name: getattr(query, name) for name in names}


@router.get(
    "/{global_step}:explain", summary="What distinguishes the sequences of a step", **answers_json(ExplainAnswer)
)
async def get_explanation(
    global_step: int,
    query: Annotated[ExplainQuery, Query()],
    request: Annotated[AuthorizedRequest, authorized(Action.STEPS)],
) -> Response:
    def answer(reader: IndexReader) -> Answer:
        found = explain_step(
            reader, global_step, window=query.window, attempt=query.attempt, limit=query.limit,
            visibility=request.access.visibility,
        )  # fmt: skip
        return Answer(fields=found.to_json(), num_tokens=sum(len(ngram.token_ids) for ngram in found.ngrams))

    limit_s = request.service.settings.limits.explain_deadline_s
    return await request.answer(query.run, answer, f"step {global_step}", deadline_s=limit_s)


def _row(step: dict[str, Any]) -> dict[str, Any]:
    """A step as a row: metrics that are no finite number are null here and named in its spikes; those are texts."""
    metrics = {name: step[name] if isinstance(step[name], (int, float)) else None for name in _METRICS}
    spikes = [{name: str(value) for name, value in spike.items()} for spike in step["spikes"]]
    return {**step, **metrics, "spikes": spikes}
