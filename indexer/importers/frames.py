"""Writing the frames of one rank into an export that no training writes, a group of rows at a time."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.records import AttemptInfo, RunInfo
from train_hooks.export_format.writing.frames import Frame
from train_hooks.export_format.writing.writer import RankWriter

__all__ = ["grouped", "write_frames"]

GROUP_ROWS = 1024
T = TypeVar("T")


def write_frames(run_dir: Path, run: RunInfo, attempt: AttemptInfo, dp_rank: int, frames: Iterable[Frame]) -> None:
    """Write all frames of a rank, in order, and seal its last file. They are taken one by one, and no more is held than a
    group of GROUP_ROWS rows. Raises OSError."""
    writer = RankWriter(OsFileSystem(), ExportPaths(run_dir).attempt_dir(attempt.attempt), run, attempt, dp_rank)
    for group in grouped(frames, lambda frame: len(frame.rows)):
        writer.append(group)
    writer.close()


def grouped(items: Iterable[T], num_rows_of: Callable[[T], int]) -> Iterator[list[T]]:
    """Lists of items that have GROUP_ROWS rows together, or are as many; the last one has what is left."""
    group: list[T] = []
    size = 0
    for item in items:
        group.append(item)
        size += 1 + num_rows_of(item)
        if size >= GROUP_ROWS:
            yield group
            group, size = [], 0
    if group:
        yield group
