"""Making an export that no training writes: into a directory that holds none, and whole or not at all."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from train_hooks.export_format.errors import RunError
from train_hooks.export_format.paths import ExportPaths

__all__ = ["new_export"]


@contextlib.contextmanager
def new_export(run_dir: Path) -> Iterator[None]:
    """What is begun of an export inside the block is removed again where the block fails.

    Raises RunError where `run_dir` holds an export, also one that a killed process left.
    """
    export = ExportPaths(run_dir).export
    if export.exists():
        raise RunError(f"{run_dir} holds an export already; give this one a run directory of its own")
    was_there = run_dir.exists()
    try:
        yield
    except BaseException:
        shutil.rmtree(export, ignore_errors=True)
        if not was_there:
            with contextlib.suppress(OSError):
                run_dir.rmdir()
        raise
