"""One authorized request about data: the only way from a route to a run.

A route says what it found (`Answer`, from a function that gets the reader). Everything else is here, once: the key's runs and
sources, the deadline, damaged shards, the envelope, the form of the answer, the budget, the read log.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

from fastapi import Depends, Request, Response
from pydantic import BaseModel

from indexer.answers.coverage import coverage_of
from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from search_api.cursors import Cursor
from search_api.gate import Access
from search_api.negotiation import JSON, Rows, choose_media_type, json_bytes
from search_api.permissions import Action
from search_api.problems import Problem
from search_api.request_models import StepFields
from search_api.service import Service

__all__ = ["Answer", "AuthorizedRequest", "authorized", "service_of"]

FindAnswer: TypeAlias = "Callable[[IndexReader], Answer]"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a route found. fields: of the JSON answer; rows: where they may go out in other forms as well.

    shards_searched: None means all. num_tokens: of training data that the answer shows.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    rows: Rows | None = None
    shards_searched: int | None = None
    truncated: bool = False
    num_tokens: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


class AuthorizedRequest:
    """One request, whose key allows `action`. http: the request as Starlette has it; media_type: of the answer."""

    def __init__(self, service: Service, access: Access, action: Action, http: Request, media_type: str) -> None:
        self.service, self.access, self.action, self.http = service, access, action, http
        self.media_type = media_type
        self._started_s = time.perf_counter()

    def run_ids(self) -> list[str]:
        """The runs that the key may read."""
        return [run_id for run_id in self.service.runs.ids() if self.access.allows_run(run_id)]

    def run_id(self, wanted: str | None) -> str:
        """A run by id; None means the only one. Raises Problem `run` alike for one that is not there and one not allowed."""
        allowed = self.run_ids()
        if wanted is None and len(allowed) == 1:
            return allowed[0]
        if wanted is None:
            raise Problem("query", f'expected "run", one of {", ".join(allowed) or "none, for this key"}')
        if wanted not in allowed:
            raise Problem(
                "run", f"found no run {wanted[:100]!r}; there is {', '.join(allowed) or 'none, for this key'}"
            )
        return wanted

    def selection(self, fields: StepFields) -> Selection:
        """The rows that are asked for and that the key may see."""
        return fields.selection(self.access.visibility)

    def context_tokens(self, wanted: int) -> int:
        """Tokens of context that the limits leave."""
        key = self.access.key
        limit = self.service.settings.limits.snippet_tokens
        return min(wanted, limit if key is None or key.snippet_tokens is None else min(limit, key.snippet_tokens))

    def fingerprint(self, body: BaseModel) -> str:
        """A fingerprint of a body without its cursor, and of what the key may see."""
        document = body.model_dump(exclude={"cursor"})
        return self.service.cursors.fingerprint(self.action, self.http.url.path, document, self.access)

    def read_cursor(self, text: str, body: BaseModel) -> Cursor:
        """The cursor of a body. Raises Problem `cursor`."""
        return self.service.cursors.read(text, self.fingerprint(body))

    def sign_cursor(self, reader: IndexReader, body: BaseModel, place: tuple[int | str, ...]) -> str:
        """A cursor after `place`, on the reader's generation."""
        cursor = Cursor(
            run_id=reader.info.run_id,
            generation=reader.generation.number,
            question=self.fingerprint(body),
            place=place,
        )
        return self.service.cursors.sign(cursor)

    async def answer(
        self,
        run: str | None,
        find_answer: FindAnswer,
        question: BaseModel | str,
        *,
        cursor: Cursor | None = None,
        deadline_s: float | None = None,
    ) -> Response:
        """Answer from a run. question: for the read log. cursor: brings its generation along. deadline_s: if not the usual."""
        run_id = self.run_id(run if cursor is None else cursor.run_id)
        runs = self.service.runs
        reader = runs.current(run_id) if cursor is None else runs.of_generation(run_id, cursor.generation)
        return await self.service.workers.run(lambda: self.respond(reader, find_answer, question), deadline_s)

    def respond(self, reader: IndexReader, find_answer: FindAnswer, question: BaseModel | str) -> Response:
        """The same in this thread."""
        answer = reader.retry_without_damaged(lambda: find_answer(reader))
        envelope = self.envelope(reader, answer)
        if answer.rows is not None:
            response = answer.rows.encode(self.media_type, envelope)
        else:
            response = Response(json_bytes({**answer.fields, **envelope}), media_type=JSON)
        response.headers.update({"Cache-Control": "no-store", **answer.headers})
        self.charge(reader.info.run_id, question, answer.num_tokens)
        return response

    def envelope(self, reader: IndexReader, answer: Answer) -> dict[str, Any]:
        """`schemas.Envelope`. A failed shard is named; why it failed stays in the operator's log. took_ms: all of it."""
        searched = len(reader.shards) if answer.shards_searched is None else answer.shards_searched
        found = coverage_of(reader, shards_searched=searched, truncated=answer.truncated, started_s=self._started_s)
        named = tuple(f"shard {failure.partition(':')[0]} is damaged" for failure in found.failures)
        return dataclasses.replace(found, failures=named).fields()

    def charge(self, run_id: str, question: BaseModel | str, num_tokens: int) -> None:
        """Charge the key, and write the read log."""
        self.service.gate.budgets.spend(self.access.key_id, num_tokens)
        self.service.read_log.append(
            key_id=self.access.key_id, action=self.action, run_id=run_id, request_id=self.http.state.request_id,
            question=question if isinstance(question, str) else question.model_dump_json(exclude_defaults=True),
            num_tokens=num_tokens,
        )  # fmt: skip


def service_of(request: Request) -> Service:
    """The server that a request came to."""
    service: Service = request.app.state.service
    return service


def authorized(action: Action, offered: Sequence[str] = (JSON,)) -> Any:
    """The dependency of a route: `request: Annotated[AuthorizedRequest, authorized(Action.COUNT)]`.

    offered: the media types that the route can answer in.
    """

    async def admit(http: Request, service: Annotated[Service, Depends(service_of)]) -> AuthorizedRequest:
        client = http.client.host if http.client is not None else "?"
        access = service.gate.admit(http.headers.get("authorization", ""), action, client)
        http.state.key = access.key_id
        media_type = choose_media_type(http.headers.get("accept", ""), offered)
        return AuthorizedRequest(service, access, action, http, media_type)

    return Depends(admit)
