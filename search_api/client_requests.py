"""What both clients share: the requests of the API, their typed arguments, and when to ask again.

Everything but starting a job is a question, so it may be asked again: after 429 and 503 when the server says so
(`Retry-After`), after a lost connection or 502 and 504 with a growing pause. A job is started again only where the server
said that it did not take it (429, 503).
"""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict
from urllib.parse import quote

import httpx

from search_api.client_answers import Json, error_of

__all__ = ["ClientOptions", "Request", "SelectionArguments", "TraceArguments"]

API_KEY_VARIABLE = "KISEKI_API_KEY"
ARROW = "application/vnd.apache.arrow.stream"
SEQUENCES_AT_ONCE, HITS_AT_ONCE = 50, 1000
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
    accept: str = "application/json"
    is_question: bool = True

    def build(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request of httpx."""
        return http.build_request(self.method, self.path, json=self.body, headers={"Accept": self.accept})

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


def get(path: str) -> Request:
    """A question without a body."""
    return Request(method="GET", path=path)


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
