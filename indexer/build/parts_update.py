"""From new shards to the parts of the next generation: seen shares of new rows, several shards side by side, then parts."""

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, as_completed
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.build.parts import CatalogPart, NewRows, build_part, new_rows_of, plan_parts
from indexer.spans.filters import Filter
from indexer.statistics.seen import EarlierShard, seen_shares
from indexer.storage.paths import IndexPaths
from indexer.storage.shard import Shard, ShardInfo, range_of_name
from train_hooks.export_format.lineage import lineage
from train_hooks.export_format.reading.reader import RunReader

__all__ = ["update_parts"]

Shares = npt.NDArray[np.float32]


def update_parts(
    paths: IndexPaths, before: Sequence[CatalogPart], infos: Sequence[ShardInfo], workers: Executor | None
) -> dict[str, str]:
    """The parts over the steps of all shards: name → SHA-256 of the manifest. workers: None to do it here."""
    new_rows = []
    for info in infos:
        after = max((part.steps.last_step for part in before if part.steps.attempt == info.attempt), default=0)
        new = new_rows_of(Shard(paths.shard_dir(info.name)), after) if info.last_step > after else None
        if new is not None:
            new_rows.append(new)
    seen = dict(_seen(paths, new_rows, [info.name for info in infos], workers))
    return {
        part.name: part.sha256
        for part in (build_part(paths, planned, seen) for planned in plan_parts(before, new_rows))
    }


def _seen(
    paths: IndexPaths, new_rows: Sequence[NewRows], names: Sequence[str], workers: Executor | None
) -> Iterator[tuple[str, Shares]]:
    if workers is None:
        for new in new_rows:
            yield new.shard.info.name, _seen_of(paths.run_dir, new.shard.info.name, new.first, names)
        _earlier.cache_clear()
        return
    waiting = {workers.submit(_seen_of, paths.run_dir, new.shard.info.name, new.first, names): new for new in new_rows}
    for future in as_completed(waiting):
        yield waiting[future].shard.info.name, future.result()


def _seen_of(run_dir: Path, name: str, first: int, names: Sequence[str]) -> Shares:
    """Seen shares of a shard's sequences from ordinal `first` on; a task that needs nothing but the run directory."""
    paths = IndexPaths(run_dir)
    shard = Shard(paths.shard_dir(name))
    return seen_shares(shard.spans, shard.steps, shard.applied, first, _earlier_shards(paths, shard, names))


def _earlier_shards(paths: IndexPaths, shard: Shard, names: Sequence[str]) -> Iterator[EarlierShard]:
    """What the lineage of the shard's attempt holds before it, the newest first: it is the likeliest to be repeated."""
    attempts = [attempt.info for attempt in RunReader(paths.run_dir).attempts()]
    last_steps = {
        interval.attempt: interval.last_step if interval.attempt != shard.info.attempt else shard.info.first_step - 1
        for interval in lineage(attempts, shard.info.attempt)
    }
    places = [(place, name) for name in names if (place := range_of_name(name)) is not None]
    for (attempt, first_step, _), name in sorted(places, reverse=True):
        last_step = last_steps.get(attempt)
        if last_step is not None and first_step <= last_step:
            yield _earlier(paths.shard_dir(name), last_step)


@functools.lru_cache(maxsize=4096)
def _earlier(directory: Path, last_step: int) -> EarlierShard:
    """Arrays stay mapped, metadata is read where it must be, and let go: a run has thousands of shards."""
    shard = Shard(directory)
    whole, all_applied = shard.info.last_step <= last_step, shard.info.num_applied == shard.info.num_sequences
    chosen = Filter(
        first=0,
        last=None if whole else int(np.searchsorted(shard.steps, last_step + 1)),
        passing=None if all_applied else shard.applied,
    )
    return EarlierShard(spans=shard.spans, anchors=shard.anchors(), chosen=chosen)
