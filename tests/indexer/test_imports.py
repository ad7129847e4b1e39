"""The search side never loads torch, and looks at train_hooks through the export format alone."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "modules", ["indexer", "search_api", "indexer.trace.trace, indexer.build.update, search_api.app", "ui.cli"]
)
def test_search_side_imports_no_torch(modules: str) -> None:
    every_command = "; [command.load() for command in ui.cli.COMMANDS]" if modules == "ui.cli" else ""
    script = (
        f"import sys, {modules}{every_command}; print(sorted(m for m in sys.modules if m.split('.')[0] == 'torch'))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
