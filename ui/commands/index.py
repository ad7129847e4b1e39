"""`kiseki index`."""

from typing import TYPE_CHECKING, Annotated

import typer

from indexer.limits import DEFAULT_SHARD_TOKENS
from ui.commands.arguments import JsonOption, RunArgument, parse_bytes
from ui.terminal import console

if TYPE_CHECKING:
    from indexer.build.update import IndexReport

__all__ = ["index_command"]


def index_command(
    run: RunArgument,
    follow_run: Annotated[bool, typer.Option("--follow", help="Go on as training goes on, until stopped.")] = False,
    interval: Annotated[float, typer.Option(help="With --follow: seconds between looks.", min=0.1)] = 10.0,
    jobs: Annotated[int, typer.Option(help="Shards built side by side.", min=1)] = 1,
    memory_limit: Annotated[str | None, typer.Option(help="Memory for building, such as 8G.")] = None,
    shard_tokens: Annotated[int, typer.Option(help="Tokens in a shard, at most.", min=1)] = DEFAULT_SHARD_TOKENS,
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard; build damaged ones again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Index what the export holds by now.

    Run it again, or with --follow, to add new steps.
    """
    from indexer.build.follow import follow
    from indexer.build.update import IndexOptions, update_index

    options = IndexOptions(
        shard_tokens=shard_tokens, jobs=jobs, memory_limit_bytes=parse_bytes(memory_limit), verify=verify
    )
    if follow_run:
        for report in follow(run, options, interval_s=interval):
            _print(report, as_json=as_json)
        return
    with console.progress("indexing tokens") as progress:
        report = update_index(run, options, progress=progress)
    _print(report, as_json=as_json)


def _print(report: "IndexReport", *, as_json: bool) -> None:
    if as_json:
        from indexer.answers.plain_data import plain_data

        console.print_json(plain_data(report))
        return
    what = (
        f"published generation {report.generation}"
        if report.published
        else f"generation {report.generation} is up to date"
    )
    console.output.print(
        f"{what}: {report.num_sequences:,} sequences, {report.num_tokens:,} tokens, steps to {report.last_step:,} in "
        f"{report.num_shards} shard{'s' if report.num_shards != 1 else ''}"
    )
