"""What both clients share: the requests of the API, their typed arguments, and when to ask again.

Everything but starting a job is a question, so it may be asked again: after 429 and 503 when the server says so
(`Retry-After`), after a lost connection or 502 and 504 with a growing pause. A job is started again only where the server
said that it did not take it (429, 503).
"""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict
from urllib.parse import quote

import httpx

from search_api.client.answers import Json, error_of

__all__ = [
    "ClientOptions",
    "DocumentArguments",
    "ExplainArguments",
    "Request",
    "SearchArguments",
    "SelectionArguments",
    "StepsArguments",
    "TraceArguments",
]

API_KEY_VARIABLE = "KISEKI_API_KEY"
ARROW = "application/vnd.apache.arrow.stream"
SEQUENCES_AT_ONCE, ROWS_AT_ONCE, SEARCHED_AT_ONCE = 50, 1000, 100
_REFUSED, _LOST = (429, 503), (502, 504)


class SelectionArguments(TypedDict, total=False):
    """Which rows count, and in which run."""

    run: str
    before_step: int
    first_step: int
    last_step: int
    attempt: int
    dp_rank: int
    source: str
    document_id: str
    lineage: Literal["canonical", "all"]


class TraceArguments(SelectionArguments, total=False):
    """Arguments of a trace beside its text."""

    token_ids: Sequence[int]
    messages: Sequence[Mapping[str, str]]
    prompt: str
    min_length: int
    max_spans: int
    num_hits: int
    context_tokens: int


class SearchArguments(SelectionArguments, total=False):
    """Arguments of a search beside its query. limit: hits on a page."""

    sort: Literal["relevance", "step", "step_desc"]
    facets: bool
    limit: int


class StepsArguments(TypedDict, total=False):
    """Which steps, of which run. limit: steps on a page. max_points: thinned out to so many, and their spikes."""

    run: str
    first_step: int
    last_step: int
    attempt: int
    all_steps: bool
    only_spikes: bool
    max_points: int
    limit: int


class ExplainArguments(TypedDict, total=False):
    """How a step is explained. window: steps before it; limit: rows, n-grams and documents that are listed."""

    run: str
    attempt: int
    window: int
    limit: int


class DocumentArguments(TypedDict, total=False):
    """Which exposures of a document. limit: exposures on a page."""

    run: str
    before_step: int
    first_step: int
    last_step: int
    attempt: int
    dp_rank: int
    lineage: Literal["canonical", "all"]
    with_text: bool
    limit: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientOptions:
    """key: by default KISEKI_API_KEY of the environment. A Retry-After of more than `max_wait_s` is not waited for."""

    key: str | None = None
    timeout_s: float = 30.0
    max_retries: int = 4
    first_wait_s: float = 0.2
    max_wait_s: float = 60.0

    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        key = self.key if self.key is not None else os.environ.get(API_KEY_VARIABLE)
        return {"Authorization": f"Bearer {key}"} if key else {}

    def wait_s(self, tries: int, response: httpx.Response | None, *, is_question: bool) -> float | None:
        """Seconds to wait before the request is sent again after `tries` times; None where it is not."""
        if tries > self.max_retries:
            return None
        pause_s = min(self.max_wait_s, self.first_wait_s * 2 ** (tries - 1)) * random.uniform(0.75, 1.25)
        if response is None:
            return pause_s if is_question else None
        if response.status_code in _REFUSED:
            asked = response.headers.get("retry-after", "")
            wait_s = max(pause_s, float(asked)) if asked.isdigit() else pause_s
            return wait_s if wait_s <= self.max_wait_s else None
        return pause_s if is_question and response.status_code in _LOST else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request. Raises ApiError where its answer is a problem."""

    method: str
    path: str
    body: Json | None = None
    params: Mapping[str, Any] | None = None
    accept: str = "application/json"
    is_question: bool = True

    def build(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request of httpx."""
        return http.build_request(
            self.method, self.path, json=self.body, params=self.params, headers={"Accept": self.accept}
        )

    def page(self, cursor: str | None, accept: str | None = None) -> "Request":
        """The same question from a cursor on, perhaps in another form."""
        more = {} if cursor is None else {"cursor": cursor}
        body, params = ({**said, **more} if said is not None else None for said in (self.body, self.params))
        return replace(self, body=body, params=params, accept=accept or self.accept)

    @staticmethod
    def check(response: httpx.Response) -> httpx.Response:
        """The response, if it is none of a problem. Its body was read."""
        if response.is_success:
            return response
        try:
            body: object = response.json()
        except ValueError:
            body = None
        raise error_of(response.status_code, body, response.headers.get("x-request-id", ""))


def get(path: str, params: Mapping[str, Any] | None = None) -> Request:
    """A question without a body."""
    return Request(method="GET", path=path, params=params)


def post(path: str, body: Json) -> Request:
    """A question with a body."""
    return Request(method="POST", path=path, body=body)


def hits_request(ngram: str | Sequence[int], context_tokens: int, arguments: Mapping[str, Any]) -> Request:
    """The places of an n-gram."""
    body = {**ngram_body(ngram, arguments), "context_tokens": context_tokens, "limit": ROWS_AT_ONCE}
    return post("/v1/hits", body)


def search_request(query: str, arguments: Mapping[str, Any]) -> Request:
    """The segments that match a query."""
    return post("/v1/search", {"limit": SEARCHED_AT_ONCE, **_listed(arguments), "query": query})


def steps_request(arguments: Mapping[str, Any]) -> Request:
    """Steps."""
    return get("/v1/steps", {"limit": ROWS_AT_ONCE, **arguments})


def explain_request(global_step: int, arguments: Mapping[str, Any]) -> Request:
    """What distinguishes a step."""
    return get(f"/v1/steps/{global_step}:explain", arguments)


def document_request(source: str, document_id: str, arguments: Mapping[str, Any]) -> Request:
    """The exposures of a document. Both names stand in the query, where they can be anything."""
    named = {"source": source, "document_id": document_id}
    return get("/v1/documents", {"limit": ROWS_AT_ONCE, **arguments, **named})


def sql_request(sql: str, run: str | None) -> Request:
    """A SELECT over the catalog, as an Arrow table."""
    return replace(post("/v1/sql", {"sql": sql, "run": run}), accept=ARROW)


def trace_body(text: str | None, arguments: Mapping[str, Any]) -> Json:
    """The body of a trace."""
    return {**({"text": text} if text is not None else {}), **_listed(arguments)}


def ngram_body(ngram: str | Sequence[int], arguments: Mapping[str, Any]) -> Json:
    """The body of a count or of hits: an n-gram is text or token ids."""
    named = {"text": ngram} if isinstance(ngram, str) else {"token_ids": list(ngram)}
    return {**named, **_listed(arguments)}


def sequence_path(address: str, *, tokens: bool) -> str:
    """The path of a sequence."""
    return f"/v1/sequences/{quote(address, safe='/')}{'?tokens=true' if tokens else ''}"


def _listed(arguments: Mapping[str, Any]) -> Json:
    return {
        name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in arguments.items()
    }
