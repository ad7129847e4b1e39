"""What `hook.wrap(loader)` does with each micro-batch that the trainer fetches: check it, and copy it."""

from collections.abc import Sequence
from typing import Any

from train_hooks.export_format.errors import InputError
from train_hooks.export_format.records import RunInfo
from train_hooks.hook.export.staging import wrong_shape_text
from train_hooks.hook.tensors.batches import TokensSelector, name_microbatch, without_metadata
from train_hooks.hook.tensors.host_copies import BufferPool
from train_hooks.hook.tensors.snapshots import Columns, Snapshot

__all__ = ["RecordModes", "copy_fetched"]


class RecordModes:
    """How the loaders of a hook are recorded, which must be the same for all of them."""

    def __init__(self) -> None:
        self._modes: set[tuple[str, ...]] = set()

    def add(self, record: str, include: Sequence[str] | None, exclude: Sequence[str]) -> None:
        """One more loader. Raises InputError where it is not recorded as those before it."""
        if record not in ("loader", "forward"):
            raise InputError(f"record: expected 'loader' or 'forward', found {record!r}")
        self._modes.add((record, *((repr(include), repr(exclude)) if record == "forward" else ())))
        if len(self._modes) > 1:
            raise InputError(
                "record: expected one way for all loaders of a hook, found several; give each the same record, and with "
                "record='forward' the same include and exclude"
            )


def copy_fetched(
    batch: Any,
    tokens: TokensSelector,
    run: RunInfo,
    pool: BufferPool,
    *,
    columns: Columns,
    include: Sequence[str] | None,
    exclude: Sequence[str],
    documents_only: bool,
) -> tuple[Snapshot, Any]:
    """Our copy of a fetched micro-batch, and what the trainer is to see of it. Arguments as of `ExportHook.wrap`.

    Raises InputError where it cannot be recorded, or has another length than the run.
    """
    named = name_microbatch(batch, tokens, include, exclude)
    snapshot = Snapshot(named, pool, columns, documents_only=documents_only)
    length = snapshot.sequence_length
    if length != run.sequence_length and not run.accepts_length(length):
        shape = (snapshot.num_slots, length)
        raise InputError(wrong_shape_text(run, f"tokens [num_slots, {{}}] at {named.tokens!r}, found", shape))
    has_metadata = named.segments is not None or named.sample_index is not None or named.sample_start is not None
    return snapshot, without_metadata(batch) if has_metadata else batch
