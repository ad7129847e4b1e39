"""What people paste or upload to be traced: text, a chat as JSON, or JSON lines of an OpenAI-style API.

The last message of a chat is the output, the ones before it are the prompt. A line of JSON lines may be a request with its
response, as batch files and logs of gateways have them.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from train_hooks.export_format.errors import InputError

__all__ = ["Output", "read_outputs", "read_upload"]

MAX_OUTPUTS = 10_000
_EXPECTED = (
    'expected a text, a chat ({"messages": [{"role": …, "content": …}]}), an answer of an OpenAI-style API '
    '({"choices": [{"message": …}]}) or JSON lines of these'
)


@dataclass(frozen=True, slots=True)
class Output:
    """What a model wrote, and what it was asked."""

    text: str
    prompt: str = ""


def read_upload(name: str, content: bytes) -> list[Output]:
    """The outputs of a file. Raises InputError where there are none, saying what was expected."""
    if b"\0" in content[:4096]:
        raise InputError(f"{name}: {_EXPECTED}, found a binary file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name}: {_EXPECTED} in UTF-8, found other bytes at {error.start}; save it as UTF-8"
        ) from error
    try:
        found = read_outputs(text, is_json=name.lower().endswith((".json", ".jsonl", ".ndjson")))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error
    if not found:
        raise InputError(f"{name}: {_EXPECTED}, found nothing in it")
    return found


def read_outputs(text: str, *, is_json: bool = False) -> list[Output]:
    """The outputs in a text; it is one itself if it is no chat. is_json: then it must be one. Raises InputError."""
    stripped = text.strip()
    if not stripped:
        return []
    if not is_json and stripped[0] not in "{[":
        return [Output(text)]
    try:
        documents = list(_documents(stripped))
        found = [output for document in documents for output in _outputs(document)]
    except InputError:
        if is_json:
            raise
        return [Output(text)]
    if len(found) > MAX_OUTPUTS:
        raise InputError(f"expected at most {MAX_OUTPUTS:,} outputs, found {len(found):,}; take a part of them")
    return found


def _documents(text: str) -> Iterator[Any]:
    try:
        yield json.loads(text)
        return
    except (json.JSONDecodeError, RecursionError) as error:
        if "\n" not in text:
            raise InputError(f"{_EXPECTED}, found no JSON: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"{_EXPECTED}, found no JSON in line {number}: {error}") from error


def _outputs(document: Any) -> list[Output]:
    """The outputs of one JSON document. Raises InputError."""
    if isinstance(document, str):
        return [Output(document)]
    if isinstance(document, list):
        if document and all(isinstance(item, dict) and "role" in item for item in document):
            return [_of_messages(document)]
        return [output for item in document for output in _outputs(item)]
    if not isinstance(document, dict):
        raise InputError(f"{_EXPECTED}, found {type(document).__name__}")
    asked = next((document[key] for key in ("request", "body") if isinstance(document.get(key), dict)), document)
    answer = document.get("response")
    if isinstance(answer, dict):
        answer = answer["body"] if isinstance(answer.get("body"), dict) else answer
        return _choices(answer, _prompt(asked)) if "choices" in answer else _outputs(answer)
    if isinstance(answer, str):
        return [Output(answer, _prompt(asked))]
    if "choices" in document:
        return _choices(document, _prompt(document))
    if isinstance(asked.get("messages"), list):
        return [_of_messages(asked["messages"])]
    for key in ("output", "completion", "text", "content"):
        if isinstance(document.get(key), str):
            return [Output(document[key], _prompt(document))]
    raise InputError(f"{_EXPECTED}, found an object with {', '.join(map(repr, list(document)[:6])) or 'nothing'}")


def _choices(answer: dict[str, Any], prompt: str) -> list[Output]:
    found = []
    for choice in answer["choices"] if isinstance(answer["choices"], list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        text = _content(message) if message is not None else choice.get("text") if isinstance(choice, dict) else None
        if isinstance(text, str) and text:
            found.append(Output(text, prompt))
    if not found:
        raise InputError(f"{_EXPECTED}, found choices without text")
    return found


def _of_messages(messages: list[Any]) -> Output:
    texts = [_content(message) for message in messages]
    if not texts or not texts[-1]:
        raise InputError(f"{_EXPECTED}, found a chat whose last message has no text")
    return Output(texts[-1], "\n".join(text for text in texts[:-1] if text))


def _prompt(asked: dict[str, Any]) -> str:
    messages = asked.get("messages")
    if isinstance(messages, list):
        return "\n".join(filter(None, map(_content, messages)))
    prompt = asked.get("prompt", "")
    return prompt if isinstance(prompt, str) else ""


def _content(message: Any) -> str:
    """The text of a message; content may be a list of parts."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
