"""Steps, their metrics and spikes, and what distinguishes one of them."""

from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Query, Response

from indexer.reader import IndexReader
from indexer.steps.explain import explain_step
from indexer.steps.steps import read_steps
from indexer.steps.thinned import thin_steps
from search_api.keys import Action
from search_api.models import ExplainQuery, StepsQuery
from search_api.negotiation import ROW_FORMATS, Rows
from search_api.request import Answer, Ask, asks
from search_api.routes.documented import one, rows
from search_api.schemas import ExplainAnswer, StepsAnswer

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


@router.get("", summary="Steps with their metrics and spikes, page by page, or thinned out", **rows(StepsAnswer))
async def list_steps(
    query: Annotated[StepsQuery, Query()], ask: Annotated[Ask, asks(Action.STEPS, ROW_FORMATS)]
) -> Response:
    cursor = ask.read_cursor(query.cursor, query) if query.cursor is not None else None

    def page(reader: IndexReader) -> Answer:
        after = None if cursor is None else (int(cursor.place[0]), int(cursor.place[1]))
        found = read_steps(reader, after=after, limit=query.limit + 1, **_range(query))
        steps = [_row(step) for step in found.to_json()["steps"]]
        following = None
        if len(steps) > query.limit:
            last = steps[query.limit - 1]
            following = ask.sign_cursor(reader, query, (last["global_step"], last["attempt"]))
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
        return await ask.answer(query.run, page, query, cursor=cursor)
    limit_s = ask.service.settings.limits.explain_deadline_s
    return await ask.answer(query.run, thinned, query, cursor=cursor, deadline_s=limit_s)


def _range(query: StepsQuery) -> dict[str, Any]:
    names = ("first_step", "last_step", "attempt", "all_steps", "only_spikes")
    return {name: getattr(query, name) for name in names}


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
