"""The barrier record that a checkpoint barrier leaves: all rows up to a step are durable on every writer rank."""

from train_hooks.export_format.barriers import write_barrier
from train_hooks.export_format.errors import ExportStopped
from train_hooks.export_format.filesystem import OsFileSystem
from train_hooks.export_format.paths import ExportPaths
from train_hooks.export_format.records import AttemptInfo

__all__ = ["record_barrier"]


def record_barrier(paths: ExportPaths, attempt: AttemptInfo, global_step: int) -> None:
    """Write it on rank 0, once all ranks have said that their rows are durable. Raises ExportStopped where it cannot."""
    try:
        write_barrier(OsFileSystem(), paths, attempt, global_step)
    except OSError as error:
        raise ExportStopped(
            f"the barrier record of step {global_step} could not be made durable: {error}; free or repair "
            "the disk, then resume from the last model checkpoint"
        ) from error
