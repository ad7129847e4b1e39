"""`kiseki trace`, `count`, `sequence`: questions to an index."""

from pathlib import Path
from typing import Annotated

import typer

from indexer.limits import MAX_HITS, MAX_SPANS, MIN_LENGTH_DEFAULT
from ui.commands.arguments import (
    AllStepsOption,
    AttemptOption,
    BeforeStepOption,
    CheckpointOption,
    DocumentOption,
    DpRankOption,
    FileOption,
    JsonOption,
    RunArgument,
    SourceOption,
    StepsOption,
    TokenIdsOption,
    TokenizerOption,
    selection,
    text_or_ids,
)
from ui.commands.outcome import end, nothing_found
from ui.terminal import console
from ui.terminal.visible import safe

__all__ = ["count_command", "sequence_command", "trace_command"]


def trace_command(
    run: RunArgument,
    text: Annotated[str | None, typer.Argument(help="Text to trace; `-` or nothing reads standard input.")] = None,
    file: FileOption = None,
    token_ids: TokenIdsOption = None,
    tokenizer: TokenizerOption = None,
    chat: Annotated[
        Path | None, typer.Option(help="JSON file of chat messages, `-` standard input; the last one is traced.")
    ] = None,
    min_length: Annotated[int, typer.Option(help="Shortest span, in tokens.")] = MIN_LENGTH_DEFAULT,
    before_step: BeforeStepOption = None,
    checkpoint: CheckpointOption = None,
    steps: StepsOption = None,
    attempt: AttemptOption = None,
    dp_rank: DpRankOption = None,
    source: SourceOption = None,
    document: DocumentOption = None,
    all_steps: AllStepsOption = False,
    limit: Annotated[int, typer.Option(help="Hits listed for a span.", min=0, max=MAX_HITS)] = 3,
    max_spans: Annotated[
        int | None, typer.Option(help="Spans listed; by default 5% of the tokens, at least 5.", min=0, max=MAX_SPANS)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find where a text occurs in what was trained on."""
    from indexer.answers.not_found import not_found_error, require_step
    from indexer.reader import IndexReader
    from indexer.trace.trace import TraceOptions, trace
    from ui.kernels import say_if_compiling
    from ui.terminal.trace import print_trace

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
    if checkpoint is not None:
        require_step(reader, chosen, checkpoint)
    given = text_or_ids(text, file, token_ids, tokenizer, chat)
    say_if_compiling("maximal_spans")
    found = trace(reader, given.text, token_ids=given.token_ids, prompt=given.prompt, options=options)
    if as_json:
        console.print_json(found.to_json())
    elif found.spans:
        print_trace(console.output, found)
    if not found.spans:
        raise not_found_error(reader, chosen) or nothing_found(
            f"no span of ≥ {min_length} tokens of these {found.num_tokens} occurs in the selected steps; "
            "try a smaller --min-length, more steps, or another text",
            found.failures,
        )
    end(len(found.spans), found.failures)


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
    from indexer.answers.not_found import not_found_error, require_step
    from indexer.reader import IndexReader
    from indexer.trace.counts import count_of_ngram, ids_of, needs_kernels

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
    if checkpoint is not None:
        require_step(reader, chosen, checkpoint)
    given = text_or_ids(text, file, token_ids, tokenizer)
    ids = ids_of(reader, given.text if given.text is None else given.text.removesuffix("\n"), given.token_ids)
    if needs_kernels(reader):
        from ui.kernels import say_if_compiling

        say_if_compiling("count_passing")
    found = count_of_ngram(reader, ids, chosen)
    nothing = not_found_error(reader, chosen) if not found.count else None
    if nothing is not None:
        raise nothing
    failures = reader.failed
    if as_json:
        console.print_json(
            {
                "count": found.count,
                "count_relation": "gte" if failures else "eq",
                "token_ids": ids,
                "generation": reader.generation.number,
                "shards_total": len(reader.generation.shards),
                "shards_searched": found.shards_searched,
                "shards_failed": len(failures),
                "failures": failures,
            }
        )
    else:
        console.output.print(f"≥ {found.count:,}" if failures else f"{found.count:,}")
        for failure in failures:
            console.errors.print(safe(f"failed: {failure}"), style="red", markup=False)
    end(found.count, failures)


def sequence_command(
    run: RunArgument,
    address: Annotated[str, typer.Argument(help="Sequence address, such as run/a1/s120/r3/m0/q5.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Show one packed sequence as the model saw it."""
    from indexer.reader import IndexReader
    from indexer.sequence import describe_row
    from ui.terminal.trace import print_sequence

    reader = IndexReader.open(run)
    sequence = reader.sequence(address)
    found = {**reader.describe(sequence), **describe_row(reader, sequence)}
    if as_json:
        console.print_json(found)
    else:
        print_sequence(console.output, found)
