"""Every exposure of a document."""

from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Query, Response

from indexer.documents.history import document_history
from indexer.reader import IndexReader
from search_api.keys import Action
from search_api.models import DocumentQuery, NamedDocumentQuery
from search_api.negotiation import ROW_FORMATS, Rows
from search_api.problems import Problem
from search_api.request import Answer, Ask, asks
from search_api.routes.documented import rows
from search_api.schemas import DocumentAnswer
from train_hooks.export_format.errors import QueryError

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["documents"])

_INT, _TEXT = pa.int64(), pa.string()
_SCHEMA = pa.schema(
    [
        ("address", _TEXT), ("global_step", _INT), ("dp_rank", _INT), ("status", _TEXT), ("canonical", pa.bool_()),
        ("start", _INT), ("length", _INT), ("document_token_offset", _INT), ("num_new_tokens", _INT), ("text", _TEXT),
    ]
)  # fmt: skip
_ROW_FIELDS = ("exposures", "next", "took_ms", "failures")


@router.get(
    "/documents",
    summary="Every exposure of a document, page by page, whatever characters its names have",
    **rows(DocumentAnswer),
)
async def find_document(
    query: Annotated[NamedDocumentQuery, Query()], ask: Annotated[Ask, asks(Action.DOCUMENTS, ROW_FORMATS)]
) -> Response:
    return await _answer(query.source, query.document_id, query, ask)


@router.get(
    "/documents/{source}/{document_id:path}",
    summary="Every exposure of a document, page by page",
    **rows(DocumentAnswer),
)
async def get_document(
    source: str, document_id: str, query: Annotated[DocumentQuery, Query()],
    ask: Annotated[Ask, asks(Action.DOCUMENTS, ROW_FORMATS)],
) -> Response:  # fmt: skip
    return await _answer(source, document_id, query, ask)


async def _answer(source: str, document_id: str, query: DocumentQuery, ask: Ask) -> Response:
    cursor = ask.read_cursor(query.cursor, query) if query.cursor is not None else None

    def answer(reader: IndexReader) -> Answer:
        after = None if cursor is None else str(cursor.place[0])
        try:
            found = document_history(
                reader, source, document_id, selection=ask.selection(query), limit=query.limit, after=after,
                with_text=query.with_text,
            )  # fmt: skip
        except QueryError as error:
            raise Problem("document", str(error)) from error
        plain = found.to_json()
        listed = [_row(exposure) for exposure in plain["exposures"]]
        following = None if found.next is None else ask.sign_cursor(reader, query, (found.next,))
        more = {name: value for name, value in plain.items() if name not in _ROW_FIELDS}
        shown = sum(exposure.segment.length for exposure in found.exposures) if query.with_text else 0
        return Answer(
            rows=Rows(name="exposures", rows=listed, schema=_SCHEMA, next_cursor=following, more=more),
            shards_searched=found.shards_searched,
            truncated=found.truncated,
            num_tokens=shown,
        )

    return await ask.answer(query.run, answer, f"{source} / {document_id}", cursor=cursor)


def _row(exposure: dict[str, Any]) -> dict[str, Any]:
    segment = exposure["segment"]
    return {name: segment[name] if name in segment else exposure[name] for name in _SCHEMA.names}
