"""What `kiseki import` took in, as it prints it."""

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from indexer.answers.plain_data import plain_data
from indexer.importers.llm_jp.importer import ImportedDump
from indexer.importers.recomputed import Recomputed
from indexer.metrics.imported import ImportedFile
from ui.terminal import console
from ui.terminal.trace import plural
from ui.terminal.visible import safe

__all__ = ["print_dump", "print_metrics", "print_problems", "print_recomputed"]


def print_problems(problems: Sequence[str], num_problems: int) -> None:
    """Lines that could not be read, on standard error."""
    for problem in problems:
        console.errors.print(Text(safe(problem)))
    if num_problems > len(problems):
        console.errors.print(f"… and {num_problems - len(problems):,} more", markup=False)


def print_recomputed(done: Recomputed, run: Path, *, as_json: bool) -> None:
    """A run that was recomputed."""
    if as_json:
        console.print_json(plain_data(done))
        return
    console.output.print(
        f"run {done.run_id}: {plural(done.num_steps, 'step')}, {plural(done.num_rows, 'sequence')}, "
        f"{done.num_tokens:,} tokens, recomputed",
        markup=False,
    )
    if done.num_without_documents:
        console.output.print(f"  {plural(done.num_without_documents, 'sequence')} of documents that nothing names")
    console.output.print(f"run `kiseki index {run}` to search it", markup=False)


def print_dump(done: ImportedDump, run: Path) -> None:
    """A run that was imported from a dump."""
    console.output.print(
        f"run {done.run_id}: {plural(done.num_rows, 'sequence')}, {done.num_tokens:,} tokens "
        f"of {plural(done.num_ranks, 'rank')}, {plural(done.num_files, 'file')}",
        markup=False,
    )
    for number, (first, last) in enumerate(done.attempts, 1):
        more = "" if number == 1 else f": the iteration fell, so step {first - 1} is what it resumed from"
        console.output.print(f"  attempt {number}: steps {first:,}–{last:,}{more}", markup=False)
    if done.num_gap_steps:
        console.output.print(
            f"  {plural(done.num_gap_steps, 'gap')}: what the dump lacks of a step of a rank", markup=False
        )
    console.output.print(f"run `kiseki index {run}` to search it", markup=False)


def print_metrics(item: ImportedFile) -> None:
    """A file of metrics."""
    names = ", ".join(item.names[:8]) + (" …" if len(item.names) > 8 else "")
    console.output.print(
        Text(
            safe(
                f"{item.origin}: {'imported before, ' if item.known else ''}{plural(item.num_values, 'value')}, steps "
                f"{item.first_step}–{item.last_step}, {names}"
            )
        )
    )
    for note in item.notes:
        console.output.print(Text(safe(f"  {note}")), style="dim")
