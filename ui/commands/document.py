"""`kiseki document`: every exposure of a document."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from indexer.corpora.source_text import source_text
from indexer.documents.history import MAX_LIMIT, DocumentHistory, Exposure, document_history
from indexer.reader import IndexReader
from train_hooks.export_format.errors import InputError
from ui.commands.arguments import (
    AllStepsOption,
    AttemptOption,
    BeforeStepOption,
    CheckpointOption,
    DpRankOption,
    JsonOption,
    RunArgument,
    StepsOption,
    selection,
)
from ui.commands.corpus import print_source_text
from ui.terminal import console
from ui.terminal.trace import numbered, one_line, plural
from ui.terminal.visible import safe

__all__ = ["document_command"]

SHOWN_RANGES = 8


def document_command(
    run: RunArgument,
    source: Annotated[str, typer.Argument(help="Source of the document.", show_default=False)],
    document_id: Annotated[str, typer.Argument(help="Its id in the source.", show_default=False)],
    before_step: BeforeStepOption = None,
    checkpoint: CheckpointOption = None,
    steps: StepsOption = None,
    attempt: AttemptOption = None,
    dp_rank: DpRankOption = None,
    all_steps: AllStepsOption = False,
    limit: Annotated[int, typer.Option(help="Exposures listed, at most 1000.")] = 20,
    after: Annotated[str | None, typer.Option(help="Go on behind this place, as the answer before names it.")] = None,
    corpus: Annotated[
        Path | None, typer.Option(help="Print the source text from this directory, and which steps saw what of it.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="With --corpus: the tokenizer.json that made the tokens, if not the run's own.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show when and where training saw a document, and how much of it."""
    chosen = selection(
        before_step=before_step,
        checkpoint=checkpoint,
        steps=steps,
        attempt=attempt,
        dp_rank=dp_rank,
        all_steps=all_steps,
        source=None,
        document=None,
    )
    if tokenizer is not None and corpus is None:
        raise InputError("--tokenizer: expected --corpus beside it, the texts to compare with")
    reader = IndexReader.open(run)
    if corpus is not None:
        limit = MAX_LIMIT
    found = document_history(
        reader, source, document_id, selection=chosen, limit=limit, after=after, with_text=corpus is None
    )
    text = None
    if corpus is not None:
        with console.progress("reading the corpus's bytes") as progress:
            text = source_text(
                reader, corpus, source, document_id, found.exposures, tokenizer=tokenizer, progress=progress
            )
    if as_json:
        console.print_json({**found.to_json(), **({} if text is None else {"source_text": dataclasses.asdict(text)})})
    elif text is None:
        _print(found)
    else:
        _print_summary(found)
        print_source_text(text)


def _print_summary(found: DocumentHistory) -> None:
    steps = f"step {found.first_step}" if found.num_steps == 1 else f"steps {found.first_step}–{found.last_step}"
    console.output.print(
        Text.assemble(
            (safe(f"{found.source} / {found.document_id}"), "green"),
            f"\n{plural(found.num_exposures, 'exposure')} in {plural(found.num_steps, 'step')}, {steps}, "
            f"{numbered('rank', found.dp_ranks)}",
            f"\n{_extent(found)}",
        )
    )
    if len(found.ranges) > 1:
        shown = ", ".join(f"[{start:,}, {end:,})" for start, end in found.ranges[:SHOWN_RANGES])
        console.output.print(f"parts: {shown}{' …' if len(found.ranges) > SHOWN_RANGES else ''}", markup=False)


def _print(found: DocumentHistory) -> None:
    _print_summary(found)
    for exposure in found.exposures:
        console.output.print(_exposure(exposure))
    if found.next is not None:
        console.output.print(Text(f"\nmore: --after {found.next}"), style="dim")
    for failure in found.failures:
        console.output.print(Text(safe(f"failed: {failure}")), style="red")


def _extent(found: DocumentHistory) -> str:
    if not found.end_token:
        return f"{found.num_tokens_seen:,} of its tokens seen; the export does not know where they stand in it"
    first = f"{found.num_tokens_distinct:,} of its first {found.end_token:,} tokens seen"
    return f"{first}, {found.num_tokens_seen:,} with repeats ({_times(found)})"


def _times(found: DocumentHistory) -> str:
    parts = [f"{tokens:,} {'once' if times == 1 else f'{times:,} times'}" for times, tokens in found.times_seen[:5]]
    return ", ".join(parts) + (" …" if len(found.times_seen) > 5 else "")


def _exposure(exposure: Exposure) -> Text:
    segment = exposure.segment
    offset = segment.document_token_offset
    part = f"[{offset:,}, {offset + segment.length:,})" if offset >= 0 else f"{segment.length:,} at an unknown place"
    new = "" if exposure.num_new_tokens == segment.length else f", {exposure.num_new_tokens:,} new"
    if exposure.num_new_tokens == 0:
        new = ", seen before" if offset >= 0 else ""
    state = "" if exposure.canonical else ", superseded"
    state += "" if exposure.status == "applied" else f", {exposure.status}"
    text = Text.assemble("\n", (str(exposure.address), "cyan"), f" at token {segment.start}: tokens {part}{new}{state}")
    if exposure.text is not None:
        text.append(f"\n    {one_line(exposure.text, 150)}", style="dim")
    return text
