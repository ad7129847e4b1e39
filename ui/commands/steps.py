"""`kiseki steps`: the steps of a run, their spikes, and what was special about one."""

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from indexer.missing_names.not_found import absent
from indexer.reader import IndexReader
from indexer.steps.explain import explain_step
from indexer.steps.steps import Step, Steps, read_steps
from ui.commands.arguments import AttemptOption, JsonOption, RunArgument, StepsOption, selection
from ui.terminal import console
from ui.terminal.explanation import print_explanation
from ui.terminal.steps_chart import chart

__all__ = ["steps_app"]

LISTED = 20
CHARTS = (("loss", 8), ("grad_norm", 4))


class ShowByDefault(TyperGroup):
    """`kiseki steps RUN` is `kiseki steps show RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in where it was left out."""
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["show", *args]
        return super().parse_args(ctx, args)


steps_app = typer.Typer(
    cls=ShowByDefault,
    help="Steps with their loss, and what was special about one. `kiseki steps RUN` is `kiseki steps show RUN`.",
    no_args_is_help=True,
)


@steps_app.command("show")
def steps_command(
    run: RunArgument,
    steps: StepsOption = None,
    attempt: AttemptOption = None,
    all_steps: Annotated[bool, typer.Option("--all-steps", help="Superseded steps as well.")] = False,
    spikes: Annotated[bool, typer.Option("--spikes", help="Only steps where loss or gradient norm jumped.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the steps of a run: a chart of the loss, and a table."""
    chosen = selection(
        before_step=None, checkpoint=None, steps=steps, attempt=attempt, dp_rank=None, all_steps=all_steps, source=None,
        document=None,
    )  # fmt: skip
    reader = IndexReader.open(run)
    found = read_steps(
        reader,
        first_step=chosen.first_step,
        last_step=chosen.last_step,
        attempt=attempt,
        all_steps=all_steps,
    )
    nothing = absent(reader, chosen) if not found.steps else None
    if nothing is not None:
        raise nothing
    shown = tuple(step for step in found.steps if step.spikes) if spikes else found.steps
    if as_json:
        console.print_json(Steps(run_id=found.run_id, generation=found.generation, steps=shown).to_json())
        return
    _print_charts(found.steps)
    _print_table(shown, everything=spikes or steps is not None)


@steps_app.command("explain")
def explain_command(
    run: RunArgument,
    step: Annotated[int, typer.Argument(help="Global step.", show_default=False)],
    window: Annotated[int, typer.Option(help="Steps before it that it is compared with.", min=1)] = 50,
    attempt: AttemptOption = None,
    limit: Annotated[int, typer.Option(help="Rows, documents and n-grams listed.", min=1)] = 10,
    as_json: JsonOption = False,
) -> None:
    """Say what distinguishes the sequences of a step from those of the steps before."""
    found = explain_step(IndexReader.open(run), step, window=window, attempt=attempt, limit=limit)
    if as_json:
        console.print_json(found.to_json())
    else:
        print_explanation(console.output, found)


def _print_charts(steps: tuple[Step, ...]) -> None:
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


def _print_table(steps: tuple[Step, ...], *, everything: bool) -> None:
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
