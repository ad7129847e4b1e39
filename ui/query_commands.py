"""`kiseki trace`, `count`, `sequence`: questions to an index."""

from pathlib import Path
from typing import Annotated

import typer

from indexer.index_reader import IndexReader
from indexer.ngrams import count_of_ngram
from indexer.tokenization import text_of_ids
from indexer.trace import MIN_LENGTH_DEFAULT, TraceOptions, trace
from train_hooks.export_format.errors import InputError, QueryError
from ui import console
from ui.arguments import (
    AllStepsOption,
    AttemptOption,
    BeforeStepOption,
    CheckpointOption,
    DocumentOption,
    DpRankOption,
    JsonOption,
    RunArgument,
    SourceOption,
    StepsOption,
    chat_text,
    input_text,
    parse_ids,
    selection,
)
from ui.render import print_sequence, print_trace

__all__ = ["count_command", "sequence_command", "trace_command"]

FileOption = Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from a file.")]
TokenIdsOption = Annotated[str | None, typer.Option(help="Token ids instead of text: numbers with commas or spaces.")]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(help="tokenizer.json that made --token-ids, where it is not the run's: they go by their text."),
]


def trace_command(
    run: RunArgument,
    text: Annotated[str | None, typer.Argument(help="Text to trace; `-` or nothing reads standard input.")] = None,
    file: FileOption = None,
    token_ids: TokenIdsOption = None,
    tokenizer: TokenizerOption = None,
    chat: Annotated[Path | None, typer.Option(help="JSON file of chat messages; the last one is traced.")] = None,
    min_length: Annotated[int, typer.Option(help="Shortest span, in tokens.")] = MIN_LENGTH_DEFAULT,
    before_step: BeforeStepOption = None,
    checkpoint: CheckpointOption = None,
    steps: StepsOption = None,
    attempt: AttemptOption = None,
    dp_rank: DpRankOption = None,
    source: SourceOption = None,
    document: DocumentOption = None,
    all_steps: AllStepsOption = False,
    limit: Annotated[int, typer.Option(help="Hits listed for a span.")] = 3,
    max_spans: Annotated[
        int | None, typer.Option(help="Spans listed; by default 5% of the tokens, at least 5.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find where a text occurs in what was trained on."""
    chosen = selection(
        before_step=before_step,
        checkpoint=checkpoint,
        steps=steps,
        attempt=attempt,
        dp_rank=dp_rank,
        all_steps=all_steps,
        source=source,
        document=document,
    )
    options = TraceOptions(min_length=min_length, selection=chosen, max_spans=max_spans, num_hits=limit)
    reader = IndexReader.open(run)
    text, ids = _own_ids(text, token_ids, tokenizer)
    if ids is not None:
        found = trace(reader, token_ids=ids, options=options)
    elif chat is not None:
        prompt, response = chat_text(chat)
        found = trace(reader, response, prompt=prompt, options=options)
    else:
        found = trace(reader, input_text(text, file), options=options)
    if as_json:
        console.print_json(found.to_json())
    elif found.spans:
        print_trace(console.output, found)
    if not found.spans:
        failed = f" (damaged and not searched: {'; '.join(found.failures)})" if found.failures else ""
        raise QueryError(
            f"no span of ≥ {min_length} tokens of these {found.num_tokens} occurs in the selected steps{failed}; "
            "try a smaller --min-length, more steps, or another text"
        )


def count_command(
    run: RunArgument,
    text: Annotated[str | None, typer.Argument(help="Text to count; `-` or nothing reads standard input.")] = None,
    file: FileOption = None,
    token_ids: TokenIdsOption = None,
    tokenizer: TokenizerOption = None,
    before_step: BeforeStepOption = None,
    checkpoint: CheckpointOption = None,
    steps: StepsOption = None,
    attempt: AttemptOption = None,
    dp_rank: DpRankOption = None,
    source: SourceOption = None,
    document: DocumentOption = None,
    all_steps: AllStepsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Count how often exactly this text occurs."""
    chosen = selection(
        before_step=before_step,
        checkpoint=checkpoint,
        steps=steps,
        attempt=attempt,
        dp_rank=dp_rank,
        all_steps=all_steps,
        source=source,
        document=document,
    )
    reader = IndexReader.open(run)
    text, ids = _own_ids(text, token_ids, tokenizer)
    if ids is None:
        ids = reader.tokenizer.encode(input_text(text, file).removesuffix("\n")).token_ids.tolist()
    if not ids:
        raise InputError("expected text or token ids to count, found none")
    count = count_of_ngram(reader, ids, chosen).count
    if as_json:
        console.print_json(
            {"count": count, "count_relation": "eq", "token_ids": ids, "generation": reader.generation.number}
        )
    else:
        console.output.print(f"{count:,}")


def _own_ids(text: str | None, token_ids: str | None, tokenizer: Path | None) -> tuple[str | None, list[int] | None]:
    """(text, ids of the run's tokenizer): ids of another tokenizer become their text. Raises InputError."""
    if token_ids is None:
        if tokenizer is not None:
            raise InputError("--tokenizer: expected --token-ids with it, found none")
        return text, None
    if text is not None:
        raise InputError("expected a text or --token-ids, found both")
    ids = parse_ids(token_ids)
    return (None, ids) if tokenizer is None else (text_of_ids(tokenizer, ids), None)


def sequence_command(
    run: RunArgument,
    address: Annotated[str, typer.Argument(help="Sequence address, such as run/a1/s120/r3/m0/q5.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Show one packed sequence as the model saw it."""
    reader = IndexReader.open(run)
    found = reader.describe(reader.sequence(address))
    if as_json:
        console.print_json(found)
    else:
        print_sequence(console.output, found)
