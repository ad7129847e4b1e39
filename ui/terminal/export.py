"""The state of an export and what a verification found, as `kiseki export` prints them."""

from collections import Counter

from rich.table import Table
from rich.text import Text

from train_hooks.export_format.origin import OriginKind
from train_hooks.export_format.upkeep.status import RunStatus
from train_hooks.export_format.verify.findings import Report, Severity
from ui.terminal import console
from ui.terminal.visible import safe

__all__ = ["print_status", "print_verified"]

_STYLES = {Severity.DAMAGED: "bold red", Severity.INCOMPLETE: "yellow", Severity.NOTE: "dim"}


def print_status(found: RunStatus) -> None:
    """The run in two lines, then a row an attempt."""
    newest = "no committed step yet" if found.newest_committed_step is None else f"step {found.newest_committed_step:,}"
    lag = "" if found.lag_s is None else f", newest record {found.lag_s:.0f} s ago"
    console.output.print(
        f"run {found.run_id}: {newest}, {found.num_rows:,} sequences, {found.num_tokens:,} tokens, "
        f"{found.num_gaps} gaps, {found.num_unsealed} open files{lag}",
        markup=False,
    )
    if found.origin.kind is not OriginKind.OBSERVED:
        console.output.print(Text(safe(found.origin.sentence())), style="yellow")
    console.output.print(found.shares.sentence(), markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "attempt",
        "parent",
        "from step",
        "to step",
        "barrier",
        "superseded",
        "state",
        "writers",
        "sequences",
        "gaps",
        "lag",
    ):
        table.add_column(name, justify="left" if name == "state" else "right")
    for item in found.attempts:
        table.add_row(
            str(item.attempt),
            "–" if item.parent_attempt is None else str(item.parent_attempt),
            f"{item.resume_step + 1:,}",
            "–" if item.last_step is None else f"{item.last_step:,}",
            "–" if item.barrier_step is None else f"{item.barrier_step:,}",
            f"{item.num_superseded:,}",
            item.state,
            f"{item.num_writers_seen} of {item.num_writers}",
            f"{item.num_rows:,}",
            str(item.num_gaps),
            str(item.lag_steps),
        )
    console.output.print(table)


def print_verified(report: Report, took_s: float) -> None:
    """Each finding, how often it was made, then the verdict."""
    for finding, times in Counter((item.severity, str(item.path), item.message) for item in report.findings).items():
        severity, path, message = finding
        often = "" if times == 1 else f" ({times:,} times)"
        line = Text.assemble((f"{severity.value:10} ", _STYLES[severity]), safe(f"{path}: {message}{often}"))
        console.output.print(line)
    verdict = {0: "holds", 1: "is DAMAGED", 3: "is incomplete"}[report.exit_code]
    console.output.print(
        f"the export {verdict}: {report.num_files} files, {report.num_rows:,} sequences, {report.num_tokens:,} tokens, "
        f"{report.size_bytes / 1e6:,.1f} MB in {took_s:.1f} s",
        markup=False,
    )
    console.output.print(report.shares.sentence(), markup=False)
