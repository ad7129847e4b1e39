"""Tombstones made final: the tokens that they hide leave the export, and the shards that hold them are built again.

1. Export first, then index, then the mark in `tombstones.json`. Killed anywhere and run again, it goes on.
2. A shard is built again exactly if it holds a token that the export has lost. Until that is published it is left out of
   answers, which say so.
3. The tombstones stay in force: tokens that were taken out are zeros, and nobody should take zeros for text.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer.build.update import IndexOptions, Progress, update_index
from indexer.selection.tombstones import TombstoneFile, visibility_of
from indexer.storage.generations import published
from indexer.storage.paths import IndexPaths
from indexer.storage.shard import Shard, ShardDamage
from train_hooks.export_format.reading.reader import RunReader
from train_hooks.export_format.records import SequenceAddress
from train_hooks.export_format.upkeep.takedown import Takedown, take_out

__all__ = ["FinishedTakedown", "finish_takedown"]

Rows = Mapping[SequenceAddress, Sequence[tuple[int, int]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedTakedown:
    """What was, or with dry_run would be, removed. num_rows: rows that the tombstones in force name."""

    tombstones: int
    num_rows: int
    num_tokens: int
    num_files: int
    shards: tuple[str, ...]
    generation: int | None


def finish_takedown(
    run_dir: Path, options: IndexOptions | None = None, *, dry_run: bool = False, progress: Progress | None = None
) -> FinishedTakedown:
    """Remove all that the tombstones in force hide; `progress` is told (files of the export looked through, of all).

    Raises IncompleteError where files that hold some of it are not sealed (nothing was changed then), DamageError where the
    export does not match its hashes.
    """
    run, paths = RunReader(run_dir), IndexPaths(run_dir)
    tombstones = TombstoneFile(paths)
    in_force = tombstones.in_force()
    hidden = visibility_of(in_force)
    what = Takedown(documents=hidden.hidden_documents, rows=hidden.hidden_rows, spans=hidden.hidden_spans)
    taken = take_out(run, what, dry_run=dry_run, progress=progress)
    before = published(paths)
    stale = tuple(_stale(paths, () if before is None else tuple(before.shards), taken.rows))
    generation = None if before is None else before.number
    if not dry_run:
        if stale:
            rebuild = dataclasses.replace(options or IndexOptions(), rebuild=frozenset(stale))
            generation = update_index(run_dir, rebuild).generation
        tombstones.mark_removed([item.number for item in in_force])
    return FinishedTakedown(
        tombstones=len(in_force),
        num_rows=len(taken.rows),
        num_tokens=taken.num_tokens,
        num_files=taken.num_files,
        shards=stale,
        generation=generation,
    )


def _stale(paths: IndexPaths, names: Sequence[str], rows: Rows) -> Iterator[str]:
    """Shards that hold a token of those ranges, and damaged ones, of which nobody knows."""
    for name in names:
        try:
            shard = Shard(paths.shard_dir(name))
            if any(_holds(shard, address, ranges) for address, ranges in rows.items()):
                yield name
        except ShardDamage:
            yield name


def _holds(shard: Shard, address: SequenceAddress, ranges: Sequence[tuple[int, int]]) -> bool:
    if (
        address.attempt != shard.info.attempt
        or not shard.info.first_step <= address.global_step <= shard.info.last_step
    ):
        return False
    ordinal = shard.ordinal_of(address)
    return ordinal is not None and any(bool(shard.tokens(ordinal)[start:end].any()) for start, end in ranges)
