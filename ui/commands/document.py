"""`kiseki document`: every exposure of a document."""

from pathlib import Path
from typing import Annotated

import typer

from indexer.limits import MAX_LIMIT
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
from ui.commands.outcome import end
from ui.terminal import console

__all__ = ["document_command"]


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
    from indexer.answers.plain_data import plain_data
    from indexer.corpora.source_text import source_text
    from indexer.documents.history import document_history
    from indexer.reader import IndexReader
    from ui.terminal.corpus import print_source_text
    from ui.terminal.document import print_document, print_document_summary

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
        console.print_json({**found.to_json(), **({} if text is None else {"source_text": plain_data(text)})})
    elif text is None:
        print_document(found)
    else:
        print_document_summary(found)
        print_source_text(text)
    end(found.num_exposures, found.failures)
