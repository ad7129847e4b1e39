"""Token n-grams: how often, and where."""

from typing import Annotated, Any

from fastapi import APIRouter, Response

from indexer.reader import IndexReader
from indexer.trace.counts import count_of_ngram, ids_of
from indexer.trace.ngrams import PageEnd, hits_of_ngram
from indexer.trace.records import Hit
from search_api.negotiation import ROW_FORMATS, Rows
from search_api.permissions import Action
from search_api.record_models import arrow_schema
from search_api.request import Answer, AuthorizedRequest, authorized
from search_api.request_models import CountRequest, HitsRequest
from search_api.routes.openapi import answers_json, answers_rows
from search_api.schemas import CountAnswer, HitsAnswer, NgramHit

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["n-grams"])

_SCHEMA = arrow_schema(NgramHit)


@router.post("/count", summary="How often exactly this n-gram occurs", **answers_json(CountAnswer))
async def post_count(body: CountRequest, request: Annotated[AuthorizedRequest, authorized(Action.COUNT)]) -> Response:
    def answer(reader: IndexReader) -> Answer:
        ids = ids_of(reader, body.text, body.token_ids)
        found = count_of_ngram(reader, ids, request.selection(body))
        return Answer(fields={"count": found.count, "token_ids": ids}, shards_searched=found.shards_searched)

    return await request.answer(body.run, answer, body)


@router.post("/hits", summary="Every place of an n-gram, page by page", **answers_rows(HitsAnswer))
async def post_hits(
    body: HitsRequest, request: Annotated[AuthorizedRequest, authorized(Action.HITS, ROW_FORMATS)]
) -> Response:
    cursor = request.read_cursor(body.cursor, body) if body.cursor is not None else None
    context_tokens = request.context_tokens(body.context_tokens)

    def answer(reader: IndexReader) -> Answer:
        ids = ids_of(reader, body.text, body.token_ids)
        after = None if cursor is None else PageEnd(shard=str(cursor.place[0]), position=int(cursor.place[1]))
        page = hits_of_ngram(
            reader, ids, request.selection(body), after=after, limit=body.limit, context_tokens=context_tokens
        )
        more = {"token_ids": ids, "snippets_cut": context_tokens < body.context_tokens}
        last = page.last
        return Answer(
            rows=Rows(
                name="hits",
                rows=[_row(hit, len(ids)) for hit in page.hits],
                schema=_SCHEMA,
                next_cursor=None if last is None else request.sign_cursor(reader, body, (last.shard, last.position)),
                more=more,
            ),
            shards_searched=page.shards_searched,
            truncated=last is not None,
            num_tokens=len(page.hits) * (len(ids) + 2 * context_tokens),
        )

    return await request.answer(body.run, answer, body, cursor=cursor)


def _row(hit: Hit, num_tokens: int) -> dict[str, Any]:
    first = hit.segments[0] if hit.segments and hit.segments[0].start <= hit.offset else None
    return {
        "address": str(hit.address),
        "attempt": hit.address.attempt,
        "global_step": hit.address.global_step,
        "dp_rank": hit.address.dp_rank,
        "offset": hit.offset,
        "num_tokens": num_tokens,
        "source": "" if first is None else first.source,
        "document_id": "" if first is None else first.document_id,
        "document_token_offset": None if first is None else hit.document_token_offset,
        "context_before": hit.context_before,
        "context_after": hit.context_after,
    }
