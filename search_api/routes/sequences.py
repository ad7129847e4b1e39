"""Packed sequences by address.

An address keeps its sequence for ever, but a takedown must reach every cache at once. So answers carry an ETag and are
revalidated (`no-cache`): what is unchanged costs a 304 and no tokens.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from indexer.reader import IndexReader
from indexer.sequence import describe_row, describe_tokens
from search_api.negotiation import ROW_FORMATS, Rows, etag_of, unchanged
from search_api.permissions import Action
from search_api.problems import Problem
from search_api.record_models import arrow_schema
from search_api.request import Answer, AuthorizedRequest, authorized
from search_api.request_models import BatchGetRequest, SequenceQuery
from search_api.routes.openapi import answers_json, answers_rows
from search_api.schemas import Sequence, SequenceAnswer, SequencesAnswer
from train_hooks.export_format.errors import QueryError
from train_hooks.export_format.records import SequenceAddress

__all__ = ["router"]

router = APIRouter(prefix="/v1", tags=["sequences"])

_NO_TOKENS = {"token_texts": None, "loss_mask": None, "loss_mask_of": None}
_SCHEMA = arrow_schema(Sequence)


@router.get(
    "/sequences/{address:path}",
    summary="One packed sequence by its address",
    **answers_json(SequenceAnswer),
)
async def get_sequence(
    address: str,
    query: Annotated[SequenceQuery, Query()],
    request: Annotated[AuthorizedRequest, authorized(Action.SEQUENCES)],
) -> Response:
    wanted = SequenceAddress.parse(address)
    run_id = request.run_id(wanted.run_id)
    reader = request.service.runs.current(run_id)
    visibility = reader.visible_under(request.access.visibility)
    etag = etag_of(str(wanted), query.tokens, reader.generation.number, len(reader.failed), hash(visibility))
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Authorization, Accept-Encoding"}

    def answer(reader: IndexReader) -> Answer:
        try:
            sequence = reader.sequence(wanted)
        except QueryError as error:
            raise Problem("sequence", str(error)) from error
        fields = {**_NO_TOKENS, **reader.describe(sequence, request.access.visibility)}
        fields |= describe_row(reader, sequence, request.access.visibility)
        if query.tokens:
            fields |= describe_tokens(reader, sequence, request.access.visibility)
        return Answer(fields=fields, num_tokens=_num_shown(fields), headers=headers)

    if unchanged(request.http, etag):
        return Response(status_code=304, headers=headers)
    return await request.answer(run_id, answer, str(wanted))


@router.post(
    "/sequences:batchGet", summary="Packed sequences by their addresses, of one run", **answers_rows(SequencesAnswer)
)
async def get_sequences(
    body: BatchGetRequest, request: Annotated[AuthorizedRequest, authorized(Action.SEQUENCES, ROW_FORMATS)]
) -> Response:
    wanted = [SequenceAddress.parse(address) for address in body.addresses]
    run_ids = {address.run_id for address in wanted}
    if len(run_ids) > 1:
        raise QueryError(f"expected addresses of one run, found {', '.join(sorted(run_ids))}; ask for each by itself")

    def answer(reader: IndexReader) -> Answer:
        if not reader.info.shorter_rows:
            _check_size(request, len(wanted) * reader.info.sequence_length, len(wanted))
        sequences, missing, num_tokens = [], [], 0
        for address in wanted:
            try:
                sequences.append(reader.sequence(address))
            except QueryError:
                missing.append(str(address))
                continue
            num_tokens += len(sequences[-1].tokens)
            _check_size(request, num_tokens, len(sequences))
        found = [reader.describe(sequence, request.access.visibility) for sequence in sequences]
        return Answer(
            rows=Rows(name="sequences", rows=found, schema=_SCHEMA, more={"missing": missing}),
            truncated=bool(missing),
            num_tokens=sum(map(_num_shown, found)),
            headers={"Kiseki-Missing": str(len(missing))},
        )

    return await request.answer(run_ids.pop(), answer, body)


def _check_size(request: AuthorizedRequest, num_tokens: int, num: int) -> None:
    limit = request.service.settings.limits.sequence_tokens
    if num > 1 and num_tokens > limit:
        raise QueryError(
            f"expected at most {limit} tokens in all, found {num_tokens} in {num} sequences; ask for "
            f"{max(1, limit * num // num_tokens)} at a time"
        )


def _num_shown(described: dict[str, Any]) -> int:
    return sum(token is not None for token in described["token_ids"])
