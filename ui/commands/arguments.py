"""Arguments that several commands share, and what they mean."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from train_hooks.export_format.errors import InputError

if TYPE_CHECKING:
    from indexer.selection.rows import Selection

__all__ = [
    "AllStepsOption",
    "AttemptOption",
    "BeforeStepOption",
    "CheckpointOption",
    "DocumentOption",
    "DpRankOption",
    "FileOption",
    "JsonOption",
    "RunArgument",
    "SourceOption",
    "StepsOption",
    "TextOrIds",
    "TokenIdsOption",
    "TokenizerOption",
    "input_text",
    "parse_bytes",
    "selection",
    "text_or_ids",
]

STANDARD_INPUT = Path("-")

RunArgument = Annotated[
    Path, typer.Argument(help="Run directory: where the training wrote its export.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
FileOption = Annotated[
    Path | None, typer.Option("--file", "-f", help="Read the text from a file; `-` reads standard input.")
]
TokenIdsOption = Annotated[str | None, typer.Option(help="Token ids instead of text: numbers with commas or spaces.")]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(help="tokenizer.json that made --token-ids, where it is not the run's: they go by their text."),
]
BeforeStepOption = Annotated[int | None, typer.Option(help="Only steps before this one.", min=0)]
CheckpointOption = Annotated[
    int | None, typer.Option(help="Only what the model checkpoint of this step has seen.", min=0)
]
StepsOption = Annotated[str | None, typer.Option(help="Only steps A:B, B not included; either may be left out.")]
AttemptOption = Annotated[int | None, typer.Option(help="Only this attempt, superseded or not.", min=1)]
DpRankOption = Annotated[int | None, typer.Option(help="Only this data-parallel rank.", min=0)]
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
) -> "Selection":
    """The rows that the options choose. Raises InputError."""
    from indexer.selection.rows import Selection

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


@dataclass(frozen=True, kw_only=True, slots=True)
class TextOrIds:
    """A text, or token ids of the run's tokenizer. prompt: what came before it in a chat."""

    text: str | None = None
    token_ids: list[int] | None = None
    prompt: str = ""


def text_or_ids(
    text: str | None,
    file: Path | None,
    token_ids: str | None,
    tokenizer: Path | None,
    chat: Path | None = None,
) -> TextOrIds:
    """The one of them that is given, or standard input. Ids of another tokenizer become their text. Raises InputError."""
    named = {"an argument": text, "--file": file, "--token-ids": token_ids, "--chat": chat}
    given = [name for name, value in named.items() if value is not None and value != "-"]
    if len(given) > 1:
        raise InputError(f"expected one text, found several: {', '.join(given)}")
    if tokenizer is not None and token_ids is None:
        raise InputError("--tokenizer: expected --token-ids with it, found none")
    if chat is not None:
        return _of_chat(chat)
    if token_ids is None:
        return TextOrIds(text=input_text(text, file))
    ids = _parse_ids(token_ids)
    if tokenizer is None:
        return TextOrIds(token_ids=ids)
    from indexer.tokenizer.tokenizer import text_of_ids

    return TextOrIds(text=text_of_ids(tokenizer, ids))


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"--token-ids: expected integers with commas or spaces, {error}") from error


def _of_chat(file: Path) -> TextOrIds:
    """Of a JSON file: a list of messages, or an object with "messages"; the last one is asked about."""
    content = _read(file, "--chat")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--chat: {file} is not JSON: {error}") from error
    messages = document.get("messages") if isinstance(document, dict) else document
    if not isinstance(messages, list):
        raise InputError(f"--chat: expected a list of messages in {file}, found {type(messages).__name__}")
    from indexer.trace.input import text_of_messages

    prompt, response = text_of_messages(messages)
    return TextOrIds(text=response, prompt=prompt)


def input_text(text: str | None, file: Path | None) -> str:
    """The text of an argument, a file, or standard input. Raises InputError."""
    if text is not None and text != "-" and file is not None:
        raise InputError("expected the text as an argument or in --file, found both")
    if file is None and text is not None and text != "-":
        return text
    if file is None and sys.stdin.isatty():
        raise InputError("expected text as an argument, in --file, or on standard input")
    return _read(file or STANDARD_INPUT, "--file" if file else "standard input")


def _read(file: Path, option: str) -> str:
    """UTF-8, without a byte order mark."""
    try:
        data = sys.stdin.buffer.read() if file == STANDARD_INPUT else file.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{option}: expected UTF-8 text, found other bytes: {error}") from error
    except OSError as error:
        raise InputError(f"{option}: {error}") from error
