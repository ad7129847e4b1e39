"""Full text and token n-grams: segments that match, with counts and facets."""

from typing import Annotated, Any

from fastapi import APIRouter, Response

from indexer.answers.plain_data import plain_data
from indexer.reader import IndexReader
from indexer.search.records import SearchHit
from indexer.search.search import SearchOptions, search
from indexer.selection.visibility import EVERYTHING
from search_api import schemas
from search_api.negotiation import ROW_FORMATS, Rows
from search_api.permissions import Action
from search_api.record_models import arrow_schema
from search_api.request import Answer, AuthorizedRequest, authorized
from search_api.request_models import SearchRequest
from search_api.routes.openapi import answers_rows

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["search"])

CHARACTERS_A_TOKEN = 4
_SCHEMA = arrow_schema(schemas.SearchHit)


@router.post(
    "/search", summary="Segments that match a query, best or first ones first", **answers_rows(schemas.SearchAnswer)
)
async def post_search(
    body: SearchRequest, request: Annotated[AuthorizedRequest, authorized(Action.SEARCH, ROW_FORMATS)]
) -> Response:
    cursor = request.read_cursor(body.cursor, body) if body.cursor is not None else None
    cap = request.context_tokens(1 << 20) * CHARACTERS_A_TOKEN

    def answer(reader: IndexReader) -> Answer:
        options = SearchOptions(
            selection=request.selection(body), limit=body.limit, sort=body.sort, facets=body.facets,
            cursor=None if cursor is None else str(cursor.place[0]),
        )  # fmt: skip
        found = search(reader, body.query, options)
        has_scores = request.access.visibility == EVERYTHING
        listed = [_row(hit, cap, has_scores=has_scores) for hit in found.hits]
        following = None if found.next_cursor is None else request.sign_cursor(reader, body, (found.next_cursor,))
        more = {
            "query": found.query, "sort": found.sort, "count": found.count,
            "facets": plain_data(found.facets),
            "snippets_cut": any(cut for _, cut in listed),
        }  # fmt: skip
        kept = [row for row, _ in listed]
        return Answer(
            rows=Rows(name="hits", rows=kept, schema=_SCHEMA, next_cursor=following, more=more),
            shards_searched=found.shards_searched,
            truncated=found.truncated,
            num_tokens=sum(len(row["snippet"] or "") // CHARACTERS_A_TOKEN + 1 for row in kept),
        )

    return await request.answer(body.run, answer, body, cursor=cursor)


def _row(hit: SearchHit, cap: int, *, has_scores: bool) -> tuple[dict[str, Any], bool]:
    """A hit as a row, and whether its snippet was cut to `cap` characters on either side of its first highlight.

    A score holds the mean length of all segments, hidden ones too: a key that may not see them gets none.
    """
    segment, snippet = hit.segment, hit.snippet
    text, start, highlights = (snippet.text, snippet.start, snippet.highlights) if snippet is not None else ("", 0, ())
    center = highlights[0] if highlights else (start, start)
    low, high = max(start, center[0] - cap), min(start + len(text), max(center[1], center[0]) + cap)
    shown = text[low - start : high - start]
    row = {
        "address": str(hit.address),
        "global_step": hit.address.global_step,
        "dp_rank": hit.address.dp_rank,
        "start": hit.start,
        "end": hit.end,
        "source": "" if segment is None else segment.source,
        "document_id": "" if segment is None else segment.document_id,
        "document_token_offset": None if segment is None else segment.document_token_offset,
        "score": hit.score if has_scores else None,
        "snippet": None if snippet is None else shown,
        "snippet_start": None if snippet is None else low,
        "highlights": [[begin, end] for begin, end in highlights if low <= begin and end <= high],
    }
    return row, len(shown) < len(text)
