"""What a route says of its answers in the OpenAPI description."""

from typing import Any

from pydantic import BaseModel

from search_api.negotiation import ARROW, CSV, NDJSON, PARQUET

__all__ = ["EVENTS", "answers_events", "answers_json", "answers_lines", "answers_rows"]

EVENTS = "text/event-stream"

_TEXT: dict[str, Any] = {"schema": {"type": "string"}}
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def answers_json(model: type[BaseModel], description: str = "The answer") -> dict[str, Any]:
    """Keywords of a route that answers in JSON alone."""
    return {"response_model": model, "response_description": description}


def answers_rows(model: type[BaseModel]) -> dict[str, Any]:
    """Keywords of a route whose rows go out in every form of `negotiation.ROW_FORMATS`."""
    content = {NDJSON: _TEXT, CSV: _TEXT, PARQUET: _BINARY, ARROW: _BINARY}
    return {**answers_json(model), "responses": {200: {"content": content}}}


def answers_lines(description: str) -> dict[str, Any]:
    """Keywords of a route that answers with a stream of JSON lines."""
    return {"responses": {200: {"description": description, "content": {NDJSON: _TEXT}}}}


def answers_events(description: str) -> dict[str, Any]:
    """Keywords of a route that answers with server-sent events."""
    event = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
    return {"responses": {200: {"description": description, "content": {EVENTS: {"schema": event}}}}}
