"""The `kiseki` command. Exit codes: 0 fine, 1 a check failed, 2 bad input, 3 incomplete."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from indexer.build import DEFAULT_SHARD_TOKENS, IndexReport, update_index
from indexer.index_reader import IndexReader
from indexer.selection import Selection
from indexer.trace import MIN_LENGTH_DEFAULT, TraceOptions, trace
from train_hooks.export_format.errors import InputError, KisekiError
from ui import console
from ui.demo import run_demo
from ui.render import print_trace
from ui.serve import serve_run

__all__ = ["app", "main"]

app = typer.Typer(
    name="kiseki",
    help="Records what a language model is trained on, and traces its outputs back to it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RunArgument = Annotated[
    Path, typer.Argument(help="Run directory: the one the training wrote its export to.", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command("index")
def index_command(
    run: RunArgument,
    shard_tokens: Annotated[int, typer.Option(help="Tokens in a shard, at most.", min=1)] = DEFAULT_SHARD_TOKENS,
    as_json: JsonOption = False,
) -> None:
    """Index what the export holds by now. Run it again, or at any time, to add new steps."""
    with console.progress("indexing sequences") as progress:
        report = update_index(run, options, progress=progress)
    if as_json:
        _print_json({name: getattr(report, name) for name in IndexReport.__dataclass_fields__})
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


@app.command("trace")
def trace_command(
    run: RunArgument,
    text: Annotated[str | None, typer.Argument(help="Text to trace; `-` or nothing reads standard input.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="Read the text from a file.")] = None,
    token_ids: Annotated[
        str | None, typer.Option(help="Trace token ids instead: numbers with commas or spaces.")
    ] = None,
    min_length: Annotated[int, typer.Option(help="Shortest span, in tokens.")] = MIN_LENGTH_DEFAULT,
    before_step: Annotated[int | None, typer.Option(help="Only steps before this one.")] = None,
    checkpoint: Annotated[
        int | None, typer.Option(help="Only what the model checkpoint of this step has seen.")
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Only steps A:B, B not included; either may be left out.")] = None,
    attempt: Annotated[int | None, typer.Option(help="Only this attempt, superseded or not.")] = None,
    dp_rank: Annotated[int | None, typer.Option(help="Only this data-parallel rank.")] = None,
    all_steps: Annotated[bool, typer.Option("--all-steps", help="Superseded and skipped steps as well.")] = False,
    limit: Annotated[int, typer.Option(help="Hits listed for a span.")] = 3,
    max_spans: Annotated[
        int | None, typer.Option(help="Spans listed; by default 5% of the tokens, at least 5.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Where does this text occur in what was trained on: steps, ranks, sequences, documents."""
    if checkpoint is not None:
        before_step = min(checkpoint + 1, before_step if before_step is not None else checkpoint + 1)
    first_step, last_step = _step_range(steps)
    options = TraceOptions(
        min_length=min_length,
        selection=Selection(
            before_step=before_step,
            first_step=first_step,
            last_step=last_step,
            attempt=attempt,
            dp_rank=dp_rank,
            lineage="all" if all_steps else "canonical",
        ),
        max_spans=max_spans,
        num_hits=limit,
    )
    reader = IndexReader.open(run)
    if token_ids is not None:
        found = trace(reader, token_ids=_ids(token_ids), options=options)
    else:
        found = trace(reader, _input_text(text, file), options=options)
    if as_json:
        _print_json(found.to_json())
    else:
        print_trace(console.output, found)


@app.command("serve")
def serve_command(
    run: RunArgument,
    host: Annotated[str, typer.Option(help="Address to listen on; loopback alone by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8700,
    api_only: Annotated[bool, typer.Option("--api-only", help="No pages.")] = False,
) -> None:
    """Serve the trace page and the API of a run, in one process."""
    serve_run(run, host=host, port=port, pages=not api_only)


@app.command("demo")
def demo_command(
    directory: Annotated[Path, typer.Argument(help="Where to put the demo run.")] = Path("demo-run"),
    steps: Annotated[int | None, typer.Option(help="Training steps; by default about a minute of them.", min=1)] = None,
) -> None:
    """Train a small model on two ranks, index its export, let it write, and trace what it wrote."""
    run_demo(directory, steps)


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


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"--token-ids: expected integers with commas or spaces, {error}") from error


def _input_text(text: str | None, file: Path | None) -> str:
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


def _print_json(document: object) -> None:
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=1, default=str) + "\n")


def main() -> None:
    """Run the command line; every error that kiseki means is one line and an exit code."""
    try:
        app()
    except KisekiError as error:
        _fail(str(error), error.exit_code)


def _fail(message: str, code: int) -> None:
    print(f"kiseki: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
