"""`kiseki upgrade`: what a newer kiseki changes for a run, and what is to be done."""

from typing import Annotated

import typer

from train_hooks.export_format.errors import InputError
from ui.commands.arguments import JsonOption, RunArgument
from ui.terminal import console

__all__ = ["upgrade_command"]


def upgrade_command(
    run: RunArgument,
    check: Annotated[
        bool, typer.Option("--check", help="Say which formats the run has, and what `kiseki index` will build again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what an upgrade of kiseki changes for a run. Exit code 3: shards of the index must be built again."""
    if not check:
        if as_json:
            raise InputError("--json: expected --check beside it; without it nothing is looked at")
        from train_hooks.export_format.reading.reader import RunReader

        run_id = RunReader(run).info.run_id
        console.output.print(
            f"run {run_id}: there is nothing to upgrade in the export, which is never rewritten. "
            f"`kiseki index {run}` builds the shards of older formats again. "
            f"`kiseki upgrade --check {run}` says which these are.",
            markup=False,
        )
        return
    from indexer.answers.plain_data import plain_data
    from indexer.build.upgrade import check_upgrade
    from ui.terminal.upgrade import print_upgrade

    found = check_upgrade(run)
    if as_json:
        console.print_json({**plain_data(found), "exit_code": found.exit_code})
    else:
        print_upgrade(found, str(run))
    raise typer.Exit(found.exit_code)
