"""Making an export that no training writes: into a directory that holds none, and whole or not at all."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from indexer.tokenization import highest_token_id
from train_hooks.export_format.errors import InputError, RunError
from train_hooks.export_format.paths import ExportPaths

__all__ = ["new_export", "vocab_size_of"]


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


def vocab_size_of(tokenizer: Path | None, given: int | None) -> int:
    """The vocabulary size given, or that of a tokenizer.json. Raises InputError where there is neither, or it is too small."""
    if tokenizer is None and given is None:
        raise InputError(
            "expected --tokenizer, the tokenizer.json that made the tokens, or --vocab-size; found neither"
        )
    highest = 0 if tokenizer is None else highest_token_id(tokenizer)
    if given is not None and given <= highest:
        raise InputError(f"--vocab-size: expected more than {highest}, the highest id of {tokenizer}, found {given}")
    return highest + 1 if given is None else given
