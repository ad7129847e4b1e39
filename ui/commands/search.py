"""`kiseki search`."""

from typing import Annotated

import typer

from indexer.limits import Sort
from ui.commands.arguments import (
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
    selection,
)
from ui.commands.outcome import end
from ui.terminal import console

__all__ = ["search_command"]


def search_command(
    run: RunArgument,
    query: Annotated[
        str,
        typer.Argument(
            help='Words, "phrases", prefix*, fuzzy~1, AND OR NOT ( ), source:, step:A..B, ids:[…], ngram:"…".'
        ),
    ],
    before_step: BeforeStepOption = None,
    checkpoint: CheckpointOption = None,
    steps: StepsOption = None,
    attempt: AttemptOption = None,
    dp_rank: DpRankOption = None,
    source: SourceOption = None,
    document: DocumentOption = None,
    all_steps: AllStepsOption = False,
    limit: Annotated[int, typer.Option(help="Hits on a page; 0 counts alone.")] = 10,
    sort: Annotated[Sort, typer.Option(help="Best first, or first or last step first.")] = "relevance",
    cursor: Annotated[str | None, typer.Option(help="The page after the one that gave this cursor.")] = None,
    facets: Annotated[bool, typer.Option("--facets", help="Count by source, steps and rank as well.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Search the segments of documents that were trained on.

    docs/query_language.md has the whole language.
    """
    from indexer.answers.not_found import not_found_error, require_step
    from indexer.reader import IndexReader
    from indexer.search.search import SearchOptions, search
    from ui.terminal.search import print_search

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
    options = SearchOptions(selection=chosen, limit=limit, sort=sort, cursor=cursor, facets=facets)
    reader = IndexReader.open(run)
    if checkpoint is not None:
        require_step(reader, chosen, checkpoint)
    result = search(reader, query, options)
    nothing = not_found_error(reader, chosen) if not result.count else None
    if nothing is not None:
        raise nothing
    if as_json:
        console.print_json(result.to_json())
    else:
        print_search(console.output, result)
    end(result.count, result.failures)
