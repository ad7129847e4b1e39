"""One authorised request about data: the only way from a route to a run.

A route says what it asks (`Answer`, from a function that gets the reader); everything else is here, once: the key's runs and
sources, the deadline, damaged shards, the envelope, the form of the answer, the budget, the read log.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

from fastapi import Depends, Request, Response
from pydantic import BaseModel

from indexer.reader import IndexReader
from indexer.selection.rows import Selection
from search_api.cursors import Cursor
from search_api.gate import Access
from search_api.keys import Action
from search_api.models import StepFields
from search_api.negotiation import JSON, Rows, choose, json_bytes
from search_api.problems import Problem
from search_api.service import Service

__all__ = ["Answer", "Ask", "asks", "service_of"]

Make: TypeAlias = "Callable[[IndexReader], Answer]"


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


class Ask:
    """One request of one key."""

    def __init__(self, service: Service, access: Access, action: Action, request: Request, media_type: str) -> None:
        self.service, self.access, self.action, self.request = service, access, action, request
        self.media_type = media_type
        self._started = time.perf_counter()

    def run_ids(self) -> list[str]:
        """The runs that the key may ask."""
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

    def context_tokens(self, asked: int) -> int:
        """Tokens of context that the caps leave."""
        key = self.access.key
        cap = self.service.settings.limits.snippet_tokens
        return min(asked, cap if key is None or key.snippet_tokens is None else min(cap, key.snippet_tokens))

    def question(self, body: BaseModel) -> str:
        """A fingerprint of a body without its cursor, and of what the key may see."""
        document = body.model_dump(exclude={"cursor"})
        return self.service.cursors.fingerprint(self.action, self.request.url.path, document, self.access)

    def read_cursor(self, text: str, body: BaseModel) -> Cursor:
        """The cursor of a body. Raises Problem `cursor`."""
        return self.service.cursors.read(text, self.question(body))

    def sign_cursor(self, reader: IndexReader, body: BaseModel, place: tuple[int | str, ...]) -> str:
        """A cursor after `place`, on the reader's generation."""
        cursor = Cursor(
            run_id=reader.info.run_id, generation=reader.generation.number, question=self.question(body), place=place
        )
        return self.service.cursors.sign(cursor)

    async def answer(
        self,
        run: str | None,
        make: Make,
        asked: BaseModel | str,
        *,
        cursor: Cursor | None = None,
        deadline_s: float | None = None,
    ) -> Response:
        """Ask a run. `asked` goes to the read log; a cursor brings its generation along. deadline_s: not the usual one."""
        run_id = self.run_id(run if cursor is None else cursor.run_id)
        runs = self.service.runs
        reader = runs.current(run_id) if cursor is None else runs.of_generation(run_id, cursor.generation)
        return await self.service.workers.run(lambda: self.respond(reader, make, asked), deadline_s)

    def respond(self, reader: IndexReader, make: Make, asked: BaseModel | str) -> Response:
        """The same in this thread."""
        answer = reader.of_sound_shards(lambda: make(reader))
        envelope = self.envelope(reader, answer)
        if answer.rows is not None:
            response = answer.rows.encode(self.media_type, envelope)
        else:
            response = Response(json_bytes({**answer.fields, **envelope}), media_type=JSON)
        response.headers.update({"Cache-Control": "no-store", **answer.headers})
        self.charge(reader.info.run_id, asked, answer.num_tokens)
        return response

    def envelope(self, reader: IndexReader, answer: Answer) -> dict[str, Any]:
        """What every answer says of itself. A failed shard is named; why it failed stays in the operator's log."""
        total = len(reader.generation.shards)
        return {
            "run_id": reader.info.run_id,
            "generation": reader.generation.number,
            "shards_total": total,
            "shards_searched": len(reader.shards) if answer.shards_searched is None else answer.shards_searched,
            "shards_failed": len(reader.failed),
            "failures": [f"shard {failure.partition(':')[0]} is damaged" for failure in reader.failed],
            "count_relation": "gte" if reader.failed else "eq",
            "truncated": answer.truncated,
            "took_ms": round((time.perf_counter() - self._started) * 1e3, 3),
        }

    def charge(self, run_id: str, asked: BaseModel | str, num_tokens: int) -> None:
        """Charge the key, and write the read log."""
        self.service.gate.budgets.spend(self.access.who, num_tokens)
        self.service.read_log.append(
            who=self.access.who, action=self.action, run_id=run_id, request_id=self.request.state.request_id,
            question=asked if isinstance(asked, str) else asked.model_dump_json(exclude_defaults=True),
            num_tokens=num_tokens,
        )  # fmt: skip


def service_of(request: Request) -> Service:
    """The server that a request came to."""
    service: Service = request.app.state.service
    return service


def asks(action: Action, offered: Sequence[str] = (JSON,)) -> Any:
    """The dependency of a route, `ask: Annotated[Ask, asks(Action.COUNT)]`, and the media types that it can answer in."""

    async def admit(request: Request, service: Annotated[Service, Depends(service_of)]) -> Ask:
        client = request.client.host if request.client is not None else "?"
        access = service.gate.admit(request.headers.get("authorization", ""), action, client)
        request.state.key = access.who
        media_type = choose(request.headers.get("accept", ""), offered)
        return Ask(service, access, action, request, media_type)

    return Depends(admit)
