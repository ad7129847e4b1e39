"""Errors as RFC 9457 problem details. The types are stable; a detail says the limit and the way to stay under it.

A detail never holds a path of the server or a text of its data: what goes beyond the caller's own request is logged under
the request's id instead.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from indexer.answers.deadline import DeadlineError
from indexer.sql.limits import SqlLimitError
from train_hooks.export_format.errors import (
    DamageError,
    IncompleteError,
    InputError,
    KisekiError,
    QueryError,
    RunError,
)

__all__ = ["PROBLEMS", "Problem", "ProblemKind", "install", "problem_response"]

MEDIA_TYPE = "application/problem+json"
_log = logging.getLogger("kiseki.server")


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """A row of the table of problems: status, title, and what to do."""

    status: int
    title: str
    help: str


PROBLEMS: Mapping[str, ProblemKind] = {
    "query": ProblemKind(400, "The query cannot be answered as asked", "change what the detail names"),
    "input": ProblemKind(400, "The request cannot be used", "change what the detail names"),
    "cursor": ProblemKind(400, "Not a cursor of this server", "start again without a cursor"),
    "unauthorized": ProblemKind(401, "No valid key", "send `Authorization: Bearer KEY` with a key that has not expired"),
    "forbidden": ProblemKind(403, "The key does not allow this", "ask for a key with that action"),
    "not-found": ProblemKind(404, "Nothing here", "look at `/openapi.json` for the paths there are"),
    "run": ProblemKind(404, "No such run", "take one of `GET /v1/runs`"),
    "document": ProblemKind(404, "No such document", "take one of a hit; the detail names similar ones"),
    "sequence": ProblemKind(404, "No such sequence", "take an address from a hit; a generation holds committed steps alone"),
    "job": ProblemKind(404, "No such job", "jobs belong to the key that made them, and expire"),
    "method": ProblemKind(405, "The path has other methods", "use one of the header `Allow`"),
    "not-acceptable": ProblemKind(406, "No such format", "accept one of the media types that the detail names"),
    "body-timeout": ProblemKind(408, "The body did not arrive in time", "send it faster, or less of it"),
    "generation-expired": ProblemKind(410, "The cursor's generation is gone", "start again without a cursor"),
    "body-too-large": ProblemKind(413, "The body is too large", "send less at a time"),
    "media-type": ProblemKind(415, "The body is not JSON", "send `Content-Type: application/json`, not compressed"),
    "validation": ProblemKind(422, "The request does not fit the schema", "see `errors` and `/openapi.json`"),
    "rate": ProblemKind(429, "Too many requests", "wait for `Retry-After` seconds"),
    "budget": ProblemKind(429, "The key's tokens are used up", "wait for `Retry-After` seconds, or ask for a larger budget"),
    "failed": ProblemKind(500, "The server failed", "tell the operator the request id"),
    "damage": ProblemKind(500, "The index or the export is damaged", "tell the operator the request id"),
    "busy": ProblemKind(503, "The server has too much to do", "wait for `Retry-After` seconds"),
    "incomplete": ProblemKind(503, "Not there yet", "ask again later"),
    "deadline": ProblemKind(504, "The answer took too long", "ask for less: a shorter text, fewer hits, fewer steps"),
}  # fmt: skip
_OF_ERRORS: tuple[tuple[type[KisekiError], str], ...] = (
    (DeadlineError, "deadline"),
    (QueryError, "query"),
    (RunError, "run"),
    (InputError, "input"),
    (IncompleteError, "incomplete"),
    (DamageError, "damage"),
)
_OF_STATUS = {404: "not-found", 405: "method", 413: "body-too-large"}


class Problem(Exception):
    """A problem by its kind. `retry_after_s` becomes the header."""

    def __init__(self, kind: str, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.kind, self.detail, self.retry_after_s = kind, detail, retry_after_s

    def to_json(self) -> dict[str, Any]:
        """The problem document."""
        kind = PROBLEMS[self.kind]
        return {
            "type": f"urn:kiseki:problem:{self.kind}",
            "title": kind.title,
            "status": kind.status,
            "detail": self.detail,
        }

    @classmethod
    def of(cls, error: KisekiError) -> "Problem":
        """The problem that an error of ours is. What only the operator should read goes to the log."""
        kind = next((name for of, name in _OF_ERRORS if isinstance(error, of)), "failed")
        if isinstance(error, SqlLimitError) and error.limit in ("deadline", "busy"):
            kind = error.limit
        if kind in ("run", "incomplete", "damage", "failed"):
            _log.error("%s: %s", kind, error)
            return cls(kind, PROBLEMS[kind].title)
        return cls(kind, str(error))


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None, **more: object) -> JSONResponse:
    """A problem as a response."""
    kind, sent = PROBLEMS[problem.kind], {"Cache-Control": "no-store", **(headers or {})}
    if problem.retry_after_s is not None:
        sent["Retry-After"] = str(max(1, round(problem.retry_after_s + 0.5)))
    if kind.status == 401:
        sent["WWW-Authenticate"] = 'Bearer realm="kiseki"'
    return JSONResponse({**problem.to_json(), **more}, status_code=kind.status, headers=sent, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem."""

    @app.exception_handler(Problem)
    async def own(request: Request, error: Problem) -> JSONResponse:
        return problem_response(error, None, **_for_peers(request, error))

    @app.exception_handler(KisekiError)
    async def meant(request: Request, error: KisekiError) -> JSONResponse:
        problem = Problem.of(error)
        return problem_response(problem, None, **_for_peers(request, problem))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            {"where": ".".join(map(str, item["loc"]))[:200], "message": str(item["msg"])[:500]}
            for item in error.errors()[:20]
        ]
        detail = "; ".join(f"{item['where']}: {item['message']}" for item in errors)
        return problem_response(Problem("validation", detail), errors=errors)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        kind = _OF_STATUS.get(error.status_code, "input")
        detail = f"{request.method} {request.url.path[:200]}: {error.detail}"
        return problem_response(Problem(kind, detail), error.headers)


def _for_peers(request: Request, problem: Problem) -> dict[str, str]:
    """infini-gram's clients look for `error`."""
    return {"error": problem.detail} if request.url.path.startswith("/compat/") else {}
