"""`kiseki export …`: look at an export, verify it, mend what a crash left, make it smaller."""

import time
from pathlib import Path
from typing import Annotated

import typer

from train_hooks.export_format.errors import InputError
from ui.commands.arguments import JsonOption, RunArgument
from ui.terminal import console

__all__ = ["export_app"]

export_app = typer.Typer(
    no_args_is_help=True,
    help="The record itself: state, verification, repair, compaction.",
    rich_markup_mode=None,
)


@export_app.command("status")
def status_command(run: RunArgument, as_json: JsonOption = False) -> None:
    """Attempts, steps, ranks, rows, tokens, gaps, how rows are known, and how far the files lag behind."""
    from indexer.answers.plain_data import plain_data
    from train_hooks.export_format.reading.reader import RunReader
    from train_hooks.export_format.upkeep.status import status
    from ui.terminal.export import print_status

    found = status(RunReader(run))
    if as_json:
        console.print_json(plain_data(found))
    else:
        print_status(found)


@export_app.command("verify")
def verify_command(
    run: RunArgument,
    corpus: Annotated[
        Path | None, typer.Option(help="Compare every segment with its source text in this directory as well.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="With --corpus: the tokenizer.json that made the tokens, if not the run's own.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every hash, that each step is complete, and maybe every token. Exit code 1: damaged, 3: incomplete."""
    from indexer.answers.plain_data import plain_data
    from indexer.corpora.files import list_files
    from indexer.tokenizer.tokenizer import open_tokenizer
    from train_hooks.export_format.verify.run import verify
    from ui.terminal.corpus import corpus_report_json, print_corpus_report, verify_with_corpus
    from ui.terminal.export import print_verified

    if tokenizer is not None and corpus is None:
        raise InputError("--tokenizer: expected --corpus beside it, the texts to compare with")
    if corpus is not None:  # before hours of hashing
        list_files(corpus)
    if tokenizer is not None:
        open_tokenizer(tokenizer)
    started = time.monotonic()
    with console.progress("verifying bytes") as progress:
        report = verify(run, progress=progress)
    compared = None
    if corpus is not None and report.exit_code != 1:
        compared = verify_with_corpus(run, corpus, tokenizer)
    exit_code = next((code for code in (1, 3) if code in (report.exit_code, compared and compared.exit_code)), 0)
    if as_json:
        more = {} if compared is None else {"corpus": corpus_report_json(compared)}
        console.print_json({**plain_data(report), **more, "exit_code": exit_code})
        raise typer.Exit(exit_code)
    print_verified(report, max(time.monotonic() - started, 1e-9))
    if compared is not None:
        print_corpus_report(compared)
    elif corpus is not None:
        console.output.print("not compared with the corpus: mend the export first")
    raise typer.Exit(exit_code)


@export_app.command("repair")
def repair_command(
    run: RunArgument,
    no_seal: Annotated[bool, typer.Option("--no-seal", help="Cut torn tails alone; leave files open.")] = False,
    assume_dead: Annotated[
        bool, typer.Option("--assume-dead", help="Attempts of other hosts are over: you vouch for it.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Cut torn tails and seal the files of dead writers. What was acknowledged is never cut."""
    from indexer.answers.plain_data import plain_data
    from train_hooks.export_format.upkeep.repair import repair

    actions = repair(run, seal=not no_seal, assume_dead=assume_dead)
    if as_json:
        console.print_json(plain_data(actions))
        return
    for action in actions:
        console.output.print(f"{action.kind:7} {action.path}: {action.message}", markup=False)
    if not actions:
        console.output.print("nothing to repair")


@export_app.command("compact")
def compact_command(run: RunArgument, as_json: JsonOption = False) -> None:
    """Turn sealed segment files into Parquet, about half the size; hashes, leaves and addresses stay."""
    from indexer.answers.plain_data import plain_data
    from train_hooks.export_format.reading.reader import RunReader
    from train_hooks.export_format.upkeep.compact import compact

    done = compact(RunReader(run))
    if as_json:
        console.print_json(plain_data(done))
        return
    for item in done:
        ratio = item.size_after_bytes / max(1, item.size_before_bytes)
        console.output.print(
            f"{item.manifest_path.stem}: {item.num_files} files, {item.num_rows:,} sequences, "
            f"{item.size_before_bytes / 1e6:.1f} MB → {item.size_after_bytes / 1e6:.1f} MB ({ratio:.0%})",
            markup=False,
        )
    if not done:
        console.output.print("nothing to compact")


@export_app.command("llm-jp")
def llm_jp_command(
    run: RunArgument,
    directory: Annotated[Path, typer.Argument(help="Where to write it; empty, or not there yet.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Write the export as an LLM-jp dump: used_data_FOLD/used_data_RANK.jsonl.gz, a line a sequence."""
    from indexer.answers.plain_data import plain_data
    from indexer.importers.llm_jp.exporter import export_dump
    from train_hooks.export_format.reading.reader import RunReader

    with console.progress("writing steps") as progress:
        done = export_dump(RunReader(run), directory, progress=progress)
    if as_json:
        console.print_json(plain_data(done))
        return
    console.output.print(
        f"{directory}: {done.num_rows:,} sequences, {done.num_tokens:,} tokens in {done.num_files:,} files",
        markup=False,
    )


@export_app.command("resolve")
def resolve_command(
    run: RunArgument,
    copy: Annotated[Path, typer.Argument(help="Run directory to make; it must hold no run.", show_default=False)],
    eos: Annotated[int | None, typer.Option(help="Token id behind each document.", min=0)] = None,
    cu_seqlens: Annotated[
        str | None, typer.Option(help="Name of the recorded tensor of cumulative lengths.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy an export, with boundaries in sequences that name no documents: identity unknown, but told apart."""
    from indexer.answers.plain_data import plain_data
    from indexer.importers.resolved import Boundaries, resolve_export
    from train_hooks.export_format.reading.reader import RunReader

    with console.progress("copying frames") as progress:
        done = resolve_export(RunReader(run), copy, Boundaries(eos=eos, lengths=cu_seqlens), progress=progress)
    if as_json:
        console.print_json(plain_data(done))
        return
    console.output.print(
        f"{copy}: {done.num_resolved:,} of {done.num_rows:,} sequences had no documents and have {done.num_segments:,} "
        "segments now, identity unknown",
        markup=False,
    )
