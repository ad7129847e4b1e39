"""Making an export that no training writes: into a directory that holds none, and whole or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from indexer.importers.unfinished import unfinished_directory
from indexer.tokenizer.tokenizer import highest_token_id
from train_hooks.export_format.errors import InputError, RunError
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths

__all__ = ["check_end_of_document", "new_export", "require_no_export", "vocab_size_of"]


@contextlib.contextmanager
def new_export(run_dir: Path) -> Iterator[Path]:
    """A run directory to write an export into; the export is that of `run_dir` once the block is over, if it did not fail.

    Raises RunError where `run_dir` holds an export, InputError where another process is making one.
    """
    require_no_export(run_dir)
    paths, system = ExportPaths(run_dir), OsFileSystem()
    with unfinished_directory(paths.unfinished_import) as unfinished:
        made = unfinished / run_dir.resolve().name  # runs without a run_id are named like their directory
        yield made
        system.rename(ExportPaths(made).export, paths.export)
        system.sync_directory(run_dir)


def require_no_export(run_dir: Path) -> None:
    """Raises RunError where `run_dir` holds an export."""
    if ExportPaths(run_dir).export.exists():
        raise RunError(f"{run_dir} holds an export already; give this one a run directory of its own")


def check_end_of_document(eos: int | None, vocab_size: int) -> None:
    """Raises InputError for a token id that the vocabulary does not have."""
    if eos is not None and eos >= vocab_size:
        raise InputError(f"--eos: expected a token id below {vocab_size}, found {eos}")


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
