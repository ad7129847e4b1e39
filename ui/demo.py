"""`kiseki demo`: the whole path on real text. Train on two ranks, index, let the model write, trace what it wrote."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from indexer.build.update import update_index
from indexer.reader import IndexReader
from indexer.trace.records import Span, Trace
from indexer.trace.trace import TraceOptions, trace
from train_hooks.export_format.errors import IncompleteError, InputError, KisekiError
from ui.kernels import say_if_compiling
from ui.terminal import console
from ui.terminal.trace import print_trace

__all__ = ["run_demo"]

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROMPTS = (
    "HOPE, n.  Desire and expectation",
    "GUNPOWDER, n.  An agency employed by",
    "FREEDOM, n.  Exemption from",
    "DOG, n.  A kind of additional",
)
LONG_SPAN = 20


def run_demo(directory: Path, steps: int | None) -> None:
    """Raises KisekiError where a part of the path does not work, so that the exit code is not 0."""
    if not (EXAMPLES / "train_fsdp.py").is_file():
        raise InputError(f"the demo trains examples/train_fsdp.py, which is not at {EXAMPLES}; run it from a checkout")
    started = time.monotonic()
    _heading(1, "train a small GPT on two ranks, with the export hook on")
    _train(directory, steps)
    _heading(2, "index the export")
    with console.progress("indexing tokens") as progress:
        report = update_index(directory, progress=progress)
    console.output.print(
        f"{report.num_sequences:,} packed sequences, {report.num_tokens:,} tokens, steps 1 to {report.last_step}, "
        f"{report.num_shards} shard{'s' if report.num_shards != 1 else ''}"
    )
    _heading(3, "let the model write")
    texts = _generate(directory, PROMPTS)
    reader = IndexReader.open(directory)
    say_if_compiling("maximal_spans")
    longest = [_trace_one(reader, prompt, text) for prompt, text in texts.items()]
    best = max((span for span in longest if span is not None), key=lambda span: span.num_tokens, default=None)
    if best is None or best.num_tokens < LONG_SPAN:
        raise IncompleteError(
            f"no span of ≥ {LONG_SPAN} tokens in what the model wrote; train longer: kiseki demo {directory} --steps …"
        )
    _say_next(directory, best, time.monotonic() - started)


def _heading(number: int, text: str) -> None:
    console.output.print(f"\n{number}. {text}", style="bold")


def _train(directory: Path, steps: int | None) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
        "--nproc-per-node", "2", str(EXAMPLES / "train_fsdp.py"),
        "--run-dir", str(directory), "--corpus", str(EXAMPLES / "corpus"),
    ]  # fmt: skip
    if steps is not None:
        command += ["--steps", str(steps)]
    _run(command, "training")


def _generate(directory: Path, prompts: Sequence[str]) -> Mapping[str, str]:
    command = [sys.executable, str(EXAMPLES / "generate.py"), str(directory), "--json"]
    for prompt in prompts:
        command += ["--prompt", prompt]
    answers = [json.loads(line) for line in _run(command, "generation", capture=True).splitlines()]
    return {answer["prompt"]: answer["text"] for answer in answers}


def _run(command: Sequence[str], what: str, *, capture: bool = False) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE if capture else None, text=True, check=False)
    if done.returncode != 0:
        raise KisekiError(f"the demo's {what} ended with exit code {done.returncode}; its own message stands above")
    return done.stdout or ""


def _trace_one(reader: IndexReader, prompt: str, written: str) -> Span | None:
    """Trace what the model wrote after the prompt; returns the longest span."""
    console.output.print()
    console.output.print(f"prompt: {prompt}", style="bold", markup=False)
    found: Trace = trace(reader, written, options=TraceOptions(num_hits=2, max_spans=3))
    print_trace(console.output, found)
    return max(found.spans, key=lambda span: span.num_tokens, default=None)


def _say_next(directory: Path, best: Span, took_s: float) -> None:
    _heading(4, "the longest span that the model wrote from memory")
    hit = next(iter(best.hits), None)
    where = f", first in sequence {hit.address} at token {hit.offset}" if hit else ""
    document = f", document {hit.segments[0].source} / {hit.segments[0].document_id}" if hit and hit.segments else ""
    ranks = "" if best.dp_ranks is None else f", data-parallel ranks {', '.join(map(str, best.dp_ranks))}"
    console.output.print(
        f"{best.num_tokens} tokens, seen {best.count} times, steps {best.first_step} to {best.last_step}"
        f"{ranks}{where}{document}",
        markup=False,
    )
    console.output.print()
    console.output.print(f"The demo took {took_s:.0f} s. What to look at next:", style="bold")
    for command, why in (
        (f"kiseki trace {directory} 'Desire and expectation rolled into one.'", "trace a text of your own"),
        (f"kiseki trace {directory} --before-step {best.first_step + 1} -f FILE", "what an early checkpoint had seen"),
        (f"kiseki serve {directory}", "the same in a browser, and the API"),
        (f"kiseki export status {directory}", "attempts, steps, ranks of the record itself; verify checks every hash"),
        (f'kiseki sql {directory} "SELECT * FROM documents LIMIT 10"', "steps, sequences and documents as tables"),
    ):
        console.output.print(f"  {command}\n      {why}", markup=False)
