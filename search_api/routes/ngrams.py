"""Token n-grams: how often, and where."""

from typing import Annotated, Any

import pyarrow as pa
from fastapi import APIRouter, Response

from indexer.reader import IndexReader
from indexer.trace.ngrams import Place, count_of_ngram, hits_of_ngram, ids_of
from indexer.trace.records import Hit
from search_api.keys import Action
from search_api.models import CountRequest, HitsRequest
from search_api.negotiation import ROW_FORMATS, Rows
from search_api.request import Answer, Ask, asks
from search_api.routes.documented import one, rows
from search_api.schemas import CountAnswer, HitsAnswer

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["n-grams"])

_INT, _TEXT = pa.int64(), pa.string()
_SCHEMA = pa.schema(
    [
        ("address", _TEXT), ("attempt", _INT), ("global_step", _INT), ("dp_rank", _INT), ("offset", _INT),
        ("num_tokens", _INT), ("source", _TEXT), ("document_id", _TEXT), ("document_token_offset", _INT),
        ("context_before", _TEXT), ("context_after", _TEXT),
    ]
)  # fmt: skip


@router.post("/count", summary="How often exactly this n-gram occurs", **one(CountAnswer))
async def post_count(body: CountRequest, ask: Annotated[Ask, asks(Action.COUNT)]) -> Response:
    def answer(reader: IndexReader) -> Answer:
        ids = ids_of(reader, body.text, body.token_ids)
        found = count_of_ngram(reader, ids, ask.selection(body))
        return Answer(fields={"count": found.count, "token_ids": ids}, shards_searched=found.shards_searched)

    return await ask.answer(body.run, answer, body)


@router.post("/hits", summary="Every place of an n-gram, page by page", **rows(HitsAnswer))
async def post_hits(body: HitsRequest, ask: Annotated[Ask, asks(Action.HITS, ROW_FORMATS)]) -> Response:
    cursor = ask.read_cursor(body.cursor, body) if body.cursor is not None else None
    context_tokens = ask.context_tokens(body.context_tokens)

    def answer(reader: IndexReader) -> Answer:
        ids = ids_of(reader, body.text, body.token_ids)
        after = None if cursor is None else Place(shard=str(cursor.place[0]), position=int(cursor.place[1]))
        page = hits_of_ngram(
            reader, ids, ask.selection(body), after=after, limit=body.limit, context_tokens=context_tokens
        )
        more = {"token_ids": ids, "snippets_cut": context_tokens < body.context_tokens}
        last = page.last
        return Answer(
            rows=Rows(
                name="hits",
                rows=[_row(hit, len(ids)) for hit in page.hits],
                schema=_SCHEMA,
                next_cursor=None if last is None else ask.sign_cursor(reader, body, (last.shard, last.position)),
                more=more,
            ),
            shards_searched=page.shards_searched,
            truncated=last is not None,
            num_tokens=len(page.hits) * (len(ids) + 2 * context_tokens),
        )

    return await ask.answer(body.run, answer, body, cursor=cursor)


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
