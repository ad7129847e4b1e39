"""`kiseki steps`: the steps of a run, their spikes, and what was special about one."""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ui.commands.arguments import AttemptOption, JsonOption, RunArgument, StepsOption, selection
from ui.commands.outcome import end
from ui.terminal import console

__all__ = ["steps_app"]


class ShowByDefault(TyperGroup):
    """`kiseki steps RUN` is `kiseki steps show RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in where it was left out."""
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
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
    from indexer.answers.not_found import not_found_error
    from indexer.reader import IndexReader
    from indexer.steps.steps import Steps, read_steps
    from ui.terminal.steps import print_charts, print_table

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
    nothing = not_found_error(reader, chosen) if not found.steps else None
    if nothing is not None:
        raise nothing
    shown = tuple(step for step in found.steps if step.spikes) if spikes else found.steps
    if as_json:
        console.print_json(Steps(run_id=found.run_id, generation=found.generation, steps=shown).to_json())
    else:
        print_charts(found.steps)
        print_table(shown, everything=spikes or steps is not None)
    end(len(shown), ())


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
    from indexer.reader import IndexReader
    from indexer.steps.explain import explain_step
    from ui.terminal.explanation import print_explanation

    found = explain_step(IndexReader.open(run), step, window=window, attempt=attempt, limit=limit)
    if as_json:
        console.print_json(found.to_json())
    else:
        print_explanation(console.output, found)
