"""Requests of infini-gram's web API, so that its clients can ask a run: `count`, `find`, `get_doc_by_rank`, and attribution as
its hosts added it. docs/api.md says where the answers differ from theirs.

A rank of theirs is a place in a suffix array. Here it names a place of the n-gram that `find` was asked for, among those that
count and that the key may see; the server remembers the n-grams that were found last, and forgets them when it starts anew.
"""

import json
import math
import time
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from indexer.trace.counts import ids_of
from indexer.trace.ngrams import counts_by_shard, hit_of_shard
from indexer.trace.records import Hit, Span
from indexer.trace.trace import TraceOptions, trace
from search_api.infinigram_ranks import RANKS_EACH, RankedNgram
from search_api.negotiation import JSON, json_bytes
from search_api.permissions import Action
from search_api.request import AuthorizedRequest, authorized
from search_api.request_models import Text, TokenIds
from search_api.routes.openapi import answers_json
from search_api.schemas import InfinigramAnswer
from train_hooks.export_format.errors import QueryError

__all__ = ["router"]

router = APIRouter(prefix="/compat/infinigram", tags=["infini-gram"])

_MAX_RANK = 10_000
_MAX_DISPLAYED = 10_000


class InfinigramRequest(BaseModel):
    """A question as infini-gram documents it. Other fields of theirs are passed over."""

    model_config = ConfigDict(
        extra="ignore", strict=True,
        json_schema_extra={"examples": [{"query_type": "count", "query": "Desire and expectation"}]},
    )  # fmt: skip

    index: Annotated[str | None, Field(max_length=100, description="A run id, or left out where there is one.")] = None
    query_type: Annotated[str, Field(max_length=100, description="`count`, `find` or `get_doc_by_rank`.")]
    query: Text | None = None
    query_ids: TokenIds | None = None
    s: Annotated[int | None, Field(ge=0, le=2**31, description="get_doc_by_rank: the shard.")] = None
    rank: Annotated[int | None, Field(ge=0, le=2**53, description="get_doc_by_rank: as `find` gave it.")] = None
    max_disp_len: Annotated[int, Field(ge=1, le=_MAX_DISPLAYED)] = 1000


class AttributionRequest(BaseModel):
    """What to attribute, with the names and defaults of the hosts' API. Other fields of theirs are passed over."""

    model_config = ConfigDict(
        extra="ignore", strict=True, alias_generator=to_camel, populate_by_name=True,
        json_schema_extra={"examples": [{"response": "Desire and expectation rolled into one.", "minimumSpanLength": 3}]},
    )  # fmt: skip

    response: Text
    prompt: Text = ""
    delimiters: Annotated[list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=100)] = []
    minimum_span_length: Annotated[int, Field(ge=1, le=10_000)] = 1
    maximum_frequency: Annotated[int, Field(ge=1, le=2**53)] = 10
    maximum_span_density: Annotated[float, Field(gt=0, le=1, strict=False)] = 0.05
    span_ranking_method: Annotated[str, Field(pattern="^(length|unigram_logprob_sum)$")] = "length"
    maximum_documents_per_span: Annotated[int, Field(ge=1, le=100)] = 10
    maximum_context_length: Annotated[int, Field(ge=1, le=512)] = 250


@router.post("", summary="A question of infini-gram's web API", **answers_json(InfinigramAnswer))
async def post_query(
    body: InfinigramRequest, request: Annotated[AuthorizedRequest, authorized(Action.HITS)]
) -> Response:
    run_id = request.run_id(body.index)
    questions = {"count": _count, "find": _find, "get_doc_by_rank": _get_document}
    if body.query_type not in questions:
        raise QueryError(f"query_type: expected one of {', '.join(questions)}, found {body.query_type[:100]!r}")
    answer = questions[body.query_type]
    reader = request.service.runs.current(run_id)
    return await request.service.workers.run(
        lambda: _with_latency(request, reader, body, lambda reader: answer(request, reader, body))
    )


@router.post(
    "/{index}/attribution",
    summary="Spans of a response, as infini-gram's hosts answer",
    **answers_json(InfinigramAnswer),
)
async def post_attribution(
    index: str, body: AttributionRequest, request: Annotated[AuthorizedRequest, authorized(Action.TRACE)]
) -> Response:
    reader = request.service.runs.current(request.run_id(index))
    return await request.service.workers.run(
        lambda: _with_latency(request, reader, body, lambda reader: _attribution(request, reader, body))
    )


def _with_latency(request: AuthorizedRequest, reader: IndexReader, body: BaseModel, make: Any) -> Response:
    began = time.perf_counter()
    fields, num_tokens = reader.retry_without_damaged(lambda: make(reader))
    request.charge(reader.info.run_id, body, num_tokens)
    document = {**fields, "latency": round((time.perf_counter() - began) * 1e3, 3)}
    return Response(json_bytes(document), media_type=JSON, headers={"Cache-Control": "no-store"})


def _ids(reader: IndexReader, body: InfinigramRequest) -> list[int]:
    return ids_of(reader, body.query, body.query_ids)


def _token_names(reader: IndexReader, ids: Sequence[int]) -> dict[str, Any]:
    has_names = reader.info.tokenizer_file is not None
    return {"token_ids": list(ids), "tokens": reader.tokenizer.names(ids) if has_names else []}


def _count(request: AuthorizedRequest, reader: IndexReader, body: InfinigramRequest) -> tuple[dict[str, Any], int]:
    ids = _ids(reader, body)
    counts = counts_by_shard(reader, ids, Selection(visibility=request.access.visibility))
    return {"count": sum(counts), "approx": bool(reader.failed), **_token_names(reader, ids)}, 0


def _find(request: AuthorizedRequest, reader: IndexReader, body: InfinigramRequest) -> tuple[dict[str, Any], int]:
    ids = _ids(reader, body)
    counts = counts_by_shard(reader, ids, Selection(visibility=request.access.visibility))
    ngram = RankedNgram(
        owner=_owner(request), run_id=reader.info.run_id, generation=reader.generation.number, token_ids=tuple(ids)
    )
    first = request.service.infinigram_ranks.add(ngram)
    segments = [[first, first + min(count, RANKS_EACH - 1)] for count in counts]
    return {"cnt": sum(counts), "segment_by_shard": segments, **_token_names(reader, ids)}, 0


def _get_document(
    request: AuthorizedRequest, reader: IndexReader, body: InfinigramRequest
) -> tuple[dict[str, Any], int]:
    if body.rank is None or body.s is None:
        raise QueryError("get_doc_by_rank: expected s and rank, as `find` gave them")
    ngram = request.service.infinigram_ranks.ngram_of(body.rank, _owner(request))
    number = body.rank % RANKS_EACH
    if number >= _MAX_RANK:
        raise QueryError(f"rank: expected one of the first {_MAX_RANK} of a shard; page through `/v1/hits` instead")
    reader = request.service.runs.of_generation(ngram.run_id, ngram.generation)
    around = request.context_tokens(max(0, body.max_disp_len - len(ngram.token_ids)) // 2)
    selection = Selection(visibility=request.access.visibility)
    hit = hit_of_shard(reader, ngram.token_ids, selection, body.s, number, around)
    if hit is None:
        raise QueryError("rank: expected one in `segment_by_shard` of `find`, found one beyond it")
    match = reader.tokenizer.decode(list(ngram.token_ids)) if reader.info.tokenizer_file is not None else ""
    return {**_document_of_hit(hit, match), **_token_names(reader, ngram.token_ids)}, len(ngram.token_ids) + 2 * around


def _owner(request: AuthorizedRequest) -> str:
    return request.service.cursors.fingerprint(request.access)


def _document_of_hit(hit: Hit, match: str) -> dict[str, Any]:
    """A place as a document of theirs: the text around it, with the match marked as clause 0."""
    first = hit.segments[0] if hit.segments else None
    metadata = {
        "address": str(hit.address), "offset": hit.offset, "global_step": hit.address.global_step,
        "source": first.source if first else "", "document_id": first.document_id if first else "",
    }  # fmt: skip
    return {
        "doc_len": hit.num_tokens_before + hit.num_tokens_after,
        "needle_offset": hit.offset,
        "metadata": json.dumps(metadata, ensure_ascii=False),
        "spans": [[hit.context_before, None], [match, "0"], [hit.context_after, None]],
    }


def _attribution(
    request: AuthorizedRequest, reader: IndexReader, body: AttributionRequest
) -> tuple[dict[str, Any], int]:
    tokenizer = reader.tokenizer
    ids = tokenizer.encode(body.response).token_ids.tolist()
    context = request.context_tokens(body.maximum_context_length)
    options = TraceOptions(
        min_length=body.minimum_span_length, selection=Selection(visibility=request.access.visibility), max_spans=10_000,
        num_hits=body.maximum_documents_per_span, context_tokens=context,
    )  # fmt: skip
    found: list[tuple[int, Span]] = []
    for start, piece in _pieces([tokenizer.decode([token]) for token in ids], ids, body):
        traced = trace(reader, token_ids=piece, prompt=body.prompt, options=options)
        found += [(start, span) for span in traced.spans if span.count <= body.maximum_frequency]
    by_length = body.span_ranking_method == "length"
    found.sort(key=lambda item: -item[1].num_tokens if by_length else item[1].log_probability)
    kept = sorted(found[: math.ceil(body.maximum_span_density * len(ids))], key=lambda item: item[0] + item[1].start)
    spans = [_attributed_span(start, span) for start, span in kept]
    shown = sum(len(span.hits) * (span.num_tokens + 2 * context) for _, span in kept)
    return {"index": reader.info.run_id, "spans": spans, "inputTokens": tokenizer.names(ids)}, shown


def _pieces(texts: Sequence[str], ids: Sequence[int], body: AttributionRequest) -> list[tuple[int, list[int]]]:
    """(start, token ids) of the stretches between tokens that hold a delimiter."""
    pieces, start = [], 0
    for end in range(len(ids) + 1):
        if end == len(ids) or any(delimiter in texts[end] for delimiter in body.delimiters):
            if end - start >= body.minimum_span_length:
                pieces.append((start, list(ids[start:end])))
            start = end + 1
    return pieces


def _attributed_span(start: int, span: Span) -> dict[str, Any]:
    return {
        "left": start + span.start,
        "right": start + span.end,
        "length": span.num_tokens,
        "count": span.count,
        "unigramLogprobSum": span.log_probability,
        "text": span.text,
        "tokenIds": list(span.token_ids),
        "documents": [
            {
                "documentLength": hit.num_tokens_before + span.num_tokens + hit.num_tokens_after,
                "needleOffset": hit.offset,
                "text": hit.context_before + span.text + hit.context_after,
                "metadata": json.loads(_document_of_hit(hit, span.text)["metadata"]),
            }
            for hit in span.hits
        ],
    }
