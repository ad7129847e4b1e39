"""Errors as RFC 9457 problem details. The types are stable; the detail is the message of our own error tree."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from train_hooks.export_format.errors import (
    DamageError,
    IncompleteError,
    InputError,
    KisekiError,
    QueryError,
    RunError,
)

__all__ = ["Problem", "install"]

_TYPES: Sequence[tuple[type[KisekiError], int, str, str]] = (
    (QueryError, 400, "query", "The query cannot be answered as asked"),
    (RunError, 404, "run", "No such run"),
    (InputError, 400, "input", "The request cannot be used"),
    (IncompleteError, 503, "incomplete", "Not there yet"),
    (DamageError, 500, "damage", "The index or the export is damaged"),
)


class Problem(Exception):
    """A problem that a route raises by itself."""

    def __init__(self, status: int, kind: str, title: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.kind, self.title, self.detail = status, kind, title, detail


def _answer(status: int, kind: str, title: str, detail: str, **more: Any) -> JSONResponse:
    body = {"type": f"urn:kiseki:problem:{kind}", "title": title, "status": status, "detail": detail, **more}
    return JSONResponse(body, status_code=status, media_type="application/problem+json")


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem."""

    @app.exception_handler(Problem)
    async def own(_: Request, error: Problem) -> JSONResponse:
        return _answer(error.status, error.kind, error.title, error.detail)

    @app.exception_handler(KisekiError)
    async def meant(_: Request, error: KisekiError) -> JSONResponse:
        for kind, status, name, title in _TYPES:
            if isinstance(error, kind):
                return _answer(status, name, title, str(error))
        return _answer(500, "failed", "The request failed", str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [{"where": ".".join(map(str, item["loc"])), "message": item["msg"]} for item in error.errors()]
        detail = "; ".join(f"{item['where']}: {item['message']}" for item in errors)
        return _answer(422, "validation", "The request does not fit the schema", detail, errors=errors)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return _answer(error.status_code, "http", str(error.detail), str(error.detail))
