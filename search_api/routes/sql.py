"""SQL of people we do not know, over a run's catalog: off unless the operator turns it on, and for unrestricted keys alone."""

import datetime
import decimal
import math
from typing import Annotated, Any

from fastapi import APIRouter, Response

from indexer.reader import IndexReader
from indexer.selection.visibility import EVERYTHING
from indexer.sql.statement import distinct_names
from search_api.negotiation import ROW_FORMATS, Rows
from search_api.permissions import Action
from search_api.problems import Problem
from search_api.request import Answer, AuthorizedRequest, authorized
from search_api.request_models import SqlRequest
from search_api.routes.openapi import answers_rows
from search_api.schemas import SqlAnswer

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["sql"])

DEADLINE_S = 6.0  # that of the sandbox, and a second for the answer


@router.post("/sql", summary="One SELECT over the catalog, in a process of its own", **answers_rows(SqlAnswer))
async def post_sql(
    body: SqlRequest, request: Annotated[AuthorizedRequest, authorized(Action.SQL, ROW_FORMATS)]
) -> Response:
    if not request.service.settings.sql:
        raise Problem("forbidden", "SQL is off on this server; its operator turns it on with `kiseki serve --sql`")
    if request.access.visibility != EVERYTHING:
        raise Problem("forbidden", "the catalog names every document: SQL is for keys without restricted sources")

    def answer(reader: IndexReader) -> Answer:
        result = request.service.sandboxes.of(reader).run(body.sql)
        table = result.table.rename_columns(distinct_names(result.table.column_names))
        listed = [{name: _plain(value) for name, value in row.items()} for row in table.to_pylist()]
        found = Rows(name="rows", rows=listed, schema=table.schema, table=table, more={"columns": table.column_names})
        return Answer(rows=found, truncated=result.truncated)

    return await request.answer(body.run, answer, body, deadline_s=DEADLINE_S)


def _plain(value: Any) -> Any:
    """What JSON can hold: numbers that are none as texts, times as ISO 8601, bytes as hexadecimal digits."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, (decimal.Decimal, datetime.timedelta)):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
