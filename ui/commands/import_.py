"""`kiseki import …`: what trainers wrote elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from ui.commands.arguments import JsonOption, RunArgument
from ui.terminal import console

__all__ = ["import_app"]

import_app = typer.Typer(no_args_is_help=True, help="Take in what a trainer wrote elsewhere.", rich_markup_mode=None)


@import_app.command("metrics")
def metrics_command(
    run: RunArgument,
    files: Annotated[
        list[Path],
        typer.Argument(help="TensorBoard event files or directories of them, CSV, JSON lines.", show_default=False),
    ],
    step_offset: Annotated[
        int, typer.Option(help="Added to every step; 1 for a trainer that counts steps from 0.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Import metrics by step from files; they appear in the catalog's step_metrics, with their file as origin.

    Exit code 1: some lines could not be read; they are named, and the others are imported.
    """
    from indexer.answers.plain_data import plain_data
    from indexer.metrics.imported import import_metrics
    from ui.terminal.imported import print_metrics, print_problems

    done = import_metrics(run, files, step_offset=step_offset)
    if as_json:
        console.print_json(plain_data(done))
    else:
        for item in done:
            print_metrics(item)
        if not all(item.known for item in done):
            console.output.print(f"run `kiseki index {run}` to see them in the catalog", markup=False)
    for item in done:
        print_problems(item.problems, item.num_problems)
    if any(item.num_problems for item in done):
        raise typer.Exit(1)


@import_app.command("llm-jp")
def llm_jp_command(
    dump: Annotated[
        Path, typer.Argument(help="Directory of used_data_FOLD/used_data_RANK.jsonl.gz.", show_default=False)
    ],
    run: Annotated[Path, typer.Argument(help="Run directory to make; it must hold no run.", show_default=False)],
    tokenizer: Annotated[
        Path | None, typer.Option(help="The tokenizer.json that made the tokens; kept in the export.")
    ] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Where there is no tokenizer file.", min=1)] = None,
    eos: Annotated[
        int | None, typer.Option(help="Token id that ends a document: tells where each of a sequence's begins.", min=0)
    ] = None,
    step_offset: Annotated[
        int, typer.Option(help="Added to every iteration; 1 for a training that counted from 0.")
    ] = 0,
    run_id: Annotated[str | None, typer.Option(help="Name of the run; by default that of its directory.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Make an export of an LLM-jp dump, marked as imported. Exit code 1: some lines could not be read; they are named."""
    from indexer.answers.plain_data import plain_data
    from indexer.importers.llm_jp.importer import import_dump
    from ui.terminal.imported import print_dump, print_problems

    with console.progress("importing bytes") as progress:
        done = import_dump(
            dump, run, tokenizer=tokenizer, vocab_size=vocab_size, eos=eos, step_offset=step_offset, run_id=run_id,
            progress=progress,
        )  # fmt: skip
    if as_json:
        console.print_json(plain_data(done))
    else:
        print_dump(done, run)
    print_problems(done.problems, done.num_problems)
    if done.num_problems:
        raise typer.Exit(1)


@import_app.command("olmo-core")
def olmo_core_command(
    config: Annotated[Path, typer.Argument(help="config.json of the training.", show_default=False)],
    run: Annotated[Path, typer.Argument(help="Run directory to make; it must hold no run.", show_default=False)],
    indices: Annotated[
        list[Path], typer.Option(help="global_indices_….npy of an epoch; once for each epoch.", show_default=False)
    ],
    ranks: Annotated[int, typer.Option(help="Data-parallel ranks of the training.", min=1)] = 1,
    last_step: Annotated[int | None, typer.Option(help="Where the training ended.", min=1)] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The tokenizer.json; kept in the export.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the token files are now, if not where config.json says.")
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="Where the texts were when they were tokenized, as `src` in the .csv.gz files has it."),
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run; by default that of its directory.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute what an OLMo-core training must have consumed, from its saved order: marked as recomputed, not observed."""
    from indexer.importers.olmo_core.reconstruct import reconstruct_olmo_core
    from ui.terminal.imported import print_recomputed

    with console.progress("recomputing steps") as progress:
        done = reconstruct_olmo_core(
            config, run, indices, num_ranks=ranks, last_step=last_step, tokenizer=tokenizer, data_dir=data_dir,
            corpus=corpus, run_id=run_id, progress=progress,
        )  # fmt: skip
    print_recomputed(done, run, as_json=as_json)


@import_app.command("megatron")
def megatron_command(
    description: Annotated[
        Path, typer.Argument(help="…-description.txt in the cache of the data set or blend.", show_default=False)
    ],
    run: Annotated[Path, typer.Argument(help="Run directory to make; it must hold no run.", show_default=False)],
    global_batch_size: Annotated[int, typer.Option(help="Sequences of a step.", min=1, show_default=False)],
    micro_batch_size: Annotated[int, typer.Option(help="Sequences of a forward call.", min=1)] = 1,
    ranks: Annotated[int, typer.Option(help="Data-parallel ranks of the training.", min=1)] = 1,
    last_step: Annotated[int | None, typer.Option(help="Where the training ended.", min=1)] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="The tokenizer.json; kept in the export.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Where there is no tokenizer file.", min=1)] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the .bin and .idx files are now, if not where they were.")
    ] = None,
    run_id: Annotated[str | None, typer.Option(help="Name of the run; by default that of its directory.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute what a Megatron training must have consumed, from its index caches: recomputed, not observed."""
    from indexer.importers.megatron.reconstruct import MegatronSchedule, reconstruct_megatron
    from ui.terminal.imported import print_recomputed

    schedule = MegatronSchedule(
        global_batch_size=global_batch_size, micro_batch_size=micro_batch_size, num_ranks=ranks, last_step=last_step
    )
    with console.progress("recomputing steps") as progress:
        done = reconstruct_megatron(
            description, run, schedule, tokenizer=tokenizer, vocab_size=vocab_size, data_dir=data_dir, run_id=run_id,
            progress=progress,
        )  # fmt: skip
    print_recomputed(done, run, as_json=as_json)
