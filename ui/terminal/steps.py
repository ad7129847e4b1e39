"""Steps, as `kiseki steps` prints them: charts and a table."""

from rich.table import Table
from rich.text import Text

from indexer.steps.steps import Step
from ui.terminal import console
from ui.terminal.steps_chart import chart

__all__ = ["print_charts", "print_table"]

LISTED = 20
CHARTS = (("loss", 8), ("grad_norm", 4))


def print_charts(steps: tuple[Step, ...]) -> None:
    """A chart of each metric that has two values or more."""
    ordered = sorted(steps, key=lambda step: (step.global_step, step.attempt))
    for metric, rows in CHARTS:
        series = [(step.global_step, getattr(step, metric)) for step in ordered if getattr(step, metric) is not None]
        if len(series) < 2:
            continue
        marked = {step.global_step for step in ordered if any(spike.metric == metric for spike in step.spikes)}
        numbers, values = zip(*series, strict=True)
        width = min(console.output.width, 120)
        for line in chart(metric, numbers, values, marked, width=width, rows=rows):
            console.output.print(Text(line, style="cyan" if "│" in line else "dim"))


def print_table(steps: tuple[Step, ...], *, everything: bool) -> None:
    """A row a step: all of them, or the last LISTED."""
    listed = steps if everything else steps[-LISTED:]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("step", "attempt", "status", "loss", "lr", "grad norm", "tokens", "sequences", ""):
        table.add_column(name, justify="left" if name in ("status", "") else "right")
    for step in listed:
        notes = [f"{spike.metric} ×{spike.deviations:.0f} above {spike.expected:.4g}" for spike in step.spikes]
        notes += [] if step.canonical else ["superseded"]
        table.add_row(
            str(step.global_step), str(step.attempt), step.status, _number(step.loss), _number(step.lr),
            _number(step.grad_norm), f"{step.num_tokens:,}", f"{step.num_sequences:,}", Text(", ".join(notes), "bold red"),
        )  # fmt: skip
    console.output.print(table)
    left = len(steps) - len(listed)
    more = f"; {left:,} before these: --steps A:B or --json" if left else ""
    console.output.print(f"{len(steps):,} step{'' if len(steps) == 1 else 's'}{more}", style="dim")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
