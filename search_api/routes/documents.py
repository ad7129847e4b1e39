"""Every exposure of a document."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from indexer.documents.history import document_history
from indexer.reader import IndexReader
from search_api.negotiation import ROW_FORMATS, Rows
from search_api.permissions import Action
from search_api.problems import Problem
from search_api.record_models import arrow_schema
from search_api.request import Answer, AuthorizedRequest, authorized
from search_api.request_models import DocumentQuery, NamedDocumentQuery
from search_api.routes.openapi import answers_rows
from search_api.schemas import DocumentAnswer, Exposure
from train_hooks.export_format.errors import QueryError

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["documents"])

_SCHEMA = arrow_schema(Exposure)
_ROW_FIELDS = ("exposures", "next", "took_ms", "failures")


@router.get(
    "/documents",
    summary="Every exposure of a document, page by page, whatever characters its names have",
    **answers_rows(DocumentAnswer),
)
async def find_document(
    query: Annotated[NamedDocumentQuery, Query()],
    request: Annotated[AuthorizedRequest, authorized(Action.DOCUMENTS, ROW_FORMATS)],
) -> Response:
    return await _answer(query.source, query.document_id, query, request)


@router.get(
    "/documents/{source}/{document_id:path}",
    summary="Every exposure of a document, page by page",
    **answers_rows(DocumentAnswer),
)
async def get_document(
    source: str, document_id: str, query: Annotated[DocumentQuery, Query()],
    request: Annotated[AuthorizedRequest, authorized(Action.DOCUMENTS, ROW_FORMATS)],
) -> Response:  # fmt: skip
    return await _answer(source, document_id, query, request)


async def _answer(source: str, document_id: str, query: DocumentQuery, request: AuthorizedRequest) -> Response:
    cursor = request.read_cursor(query.cursor, query) if query.cursor is not None else None

    def answer(reader: IndexReader) -> Answer:
        after = None if cursor is None else str(cursor.place[0])
        try:
            found = document_history(
                reader, source, document_id, selection=request.selection(query), limit=query.limit, after=after,
                with_text=query.with_text,
            )  # fmt: skip
        except QueryError as error:
            raise Problem("document", str(error)) from error
        plain = found.to_json()
        listed = [_row(exposure) for exposure in plain["exposures"]]
        following = None if found.next is None else request.sign_cursor(reader, query, (found.next,))
        more = {name: value for name, value in plain.items() if name not in _ROW_FIELDS}
        shown = sum(exposure.segment.length for exposure in found.exposures) if query.with_text else 0
        return Answer(
            rows=Rows(name="exposures", rows=listed, schema=_SCHEMA, next_cursor=following, more=more),
            shards_searched=found.shards_searched,
            truncated=found.truncated,
            num_tokens=shown,
        )

    return await request.answer(query.run, answer, f"{source} / {document_id}", cursor=cursor)


def _row(exposure: dict[str, Any]) -> dict[str, Any]:
    segment = exposure["segment"]
    return {name: segment[name] if name in segment else exposure[name] for name in _SCHEMA.names}
