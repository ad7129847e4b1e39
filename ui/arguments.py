"""Arguments that several commands share, and what they mean."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from indexer.selection import Selection
from indexer.trace_input import text_of_messages
from train_hooks.export_format.errors import InputError

__all__ = [
    "AllStepsOption",
    "AttemptOption",
    "BeforeStepOption",
    "CheckpointOption",
    "DocumentOption",
    "DpRankOption",
    "JsonOption",
    "RunArgument",
    "SourceOption",
    "StepsOption",
    "chat_text",
    "input_text",
    "parse_bytes",
    "parse_ids",
    "selection",
]

RunArgument = Annotated[
    Path, typer.Argument(help="Run directory: where the training wrote its export.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
BeforeStepOption = Annotated[int | None, typer.Option(help="Only steps before this one.")]
CheckpointOption = Annotated[int | None, typer.Option(help="Only what the model checkpoint of this step has seen.")]
StepsOption = Annotated[str | None, typer.Option(help="Only steps A:B, B not included; either may be left out.")]
AttemptOption = Annotated[int | None, typer.Option(help="Only this attempt, superseded or not.")]
DpRankOption = Annotated[int | None, typer.Option(help="Only this data-parallel rank.")]
SourceOption = Annotated[str | None, typer.Option(help="Only hits that begin in a document of this source.")]
DocumentOption = Annotated[str | None, typer.Option(help="Only hits that begin in this document.")]
AllStepsOption = Annotated[bool, typer.Option("--all-steps", help="Superseded and skipped steps as well.")]


def selection(
    *,
    before_step: int | None,
    checkpoint: int | None,
    steps: str | None,
    attempt: int | None,
    dp_rank: int | None,
    all_steps: bool,
    source: str | None,
    document: str | None,
) -> Selection:
    """The rows that the options choose. Raises InputError."""
    if checkpoint is not None:
        before_step = checkpoint + 1 if before_step is None else min(before_step, checkpoint + 1)
    first_step, last_step = _step_range(steps)
    return Selection(
        before_step=before_step,
        first_step=first_step,
        last_step=last_step,
        attempt=attempt,
        dp_rank=dp_rank,
        lineage="all" if all_steps else "canonical",
        source=source,
        document_id=document,
    )


def _step_range(steps: str | None) -> tuple[int | None, int | None]:
    if steps is None:
        return None, None
    first, separator, last = steps.partition(":")
    try:
        if not separator:
            raise ValueError("no colon")
        return (int(first) if first else None), (int(last) - 1 if last else None)
    except ValueError as error:
        raise InputError(f"--steps: expected A:B such as 100:200, found {steps!r}") from error


def parse_ids(text: str) -> list[int]:
    """Token ids with commas or spaces. Raises InputError."""
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"--token-ids: expected integers with commas or spaces, {error}") from error


def parse_bytes(text: str | None) -> int | None:
    """A size such as 8G, 512M, 100000. Raises InputError."""
    if text is None:
        return None
    units = {"K": 10, "M": 20, "G": 30, "T": 40}
    number, unit = (text[:-1], units[text[-1].upper()]) if text and text[-1].upper() in units else (text, 0)
    try:
        return int(float(number) * (1 << unit))
    except ValueError as error:
        raise InputError(f"expected a size such as 8G or 512M, found {text!r}") from error


def input_text(text: str | None, file: Path | None) -> str:
    """The text of an argument, a file, or standard input. Raises InputError."""
    if text is not None and text != "-" and file is not None:
        raise InputError("expected the text as an argument or in --file, found both")
    try:
        if file is not None:
            return file.read_bytes().decode("utf-8")
        if text is None or text == "-":
            if sys.stdin.isatty():
                raise InputError("expected text as an argument, in --file, or on standard input")
            return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"expected UTF-8 text, found other bytes: {error}") from error
    except OSError as error:
        raise InputError(f"--file: {error}") from error
    return text


def chat_text(file: Path) -> tuple[str, str]:
    """(prompt, response) of a JSON file: a list of messages, or an object with "messages". Raises InputError."""
    text = input_text(None, file)
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError(f"--chat: {file} is not JSON: {error}") from error
    messages = document.get("messages") if isinstance(document, dict) else document
    if not isinstance(messages, list):
        raise InputError(f"--chat: expected a list of messages in {file}, found {type(messages).__name__}")
    return text_of_messages(messages)
