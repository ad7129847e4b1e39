"""`kiseki index`: bring the index of a run up to what its export holds. Idempotent; killed anywhere, it goes on.

Each attempt's committed steps after the ones that are covered are cut into shards; a shard that is whole already is kept.
Then the catalog is written and one rename publishes the new generation. Steps committed meanwhile wait for the next call.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer.catalog import AttemptState, write_catalog
from indexer.generations import Generation, locked, new_generation, publish, published, write_generation
from indexer.ingest import StepRange, committed_ranges, read_rows
from indexer.paths import BUILDING, IndexPaths
from indexer.shard import ShardInfo, build_shard
from indexer.tokenization import RunTokenizer
from train_hooks.export_format.errors import IncompleteError, RunError
from train_hooks.export_format.lineage import StepInterval, canonical_attempt, lineage
from train_hooks.export_format.reader import RunReader

__all__ = ["IndexReport", "update_index"]

DEFAULT_SHARD_TOKENS = 64_000_000
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexReport:
    """What an indexing did, and what the index now covers."""

    generation: int
    published: bool
    shards_built: int
    num_shards: int
    num_sequences: int
    num_tokens: int
    last_step: int


def update_index(
    run_dir: Path | str, *, shard_tokens: int = DEFAULT_SHARD_TOKENS, progress: Progress | None = None
) -> IndexReport:
    """Index all committed steps of a run. `progress` is told (sequences done, sequences in all).

    Raises RunError for a directory that is no run, IncompleteError where nothing is committed yet or another process
    indexes, DamageError where the export does not match its hashes.
    """
    run = RunReader(run_dir)
    paths = IndexPaths(run.paths.run_dir)
    with locked(paths):
        _remove_unfinished(paths)
        before = published(paths)
        if before is not None and before.run_id != run.info.run_id:
            raise RunError(
                f"{paths.index} is of run {before.run_id}, the export of {run.info.run_id}; delete the index"
            )
        states = [AttemptState(attempt) for attempt in run.attempts()]
        plan = _plan(states, before, max(1, shard_tokens // run.info.sequence_length))
        if before is None and not plan:
            raise IncompleteError(f"{run.paths.run_dir} has no committed step yet; run `kiseki index` again later")
        intervals = _canonical(states)
        if before is not None and not plan and before.canonical_attempt == _last_attempt(intervals):
            return _report(paths, before, built=0, changed=False)
        built = _build(paths, run, states, plan, progress)
        generation = _next(paths, run, before, built, intervals)
        infos = [ShardInfo.read(paths.shard_dir(name)) for name in generation.shards]
        write_catalog(paths, generation, run, states, infos, intervals)
        write_generation(paths, generation)
        publish(paths, generation)
        return _report(paths, generation, built=len(built), changed=True)


def _plan(states: Sequence[AttemptState], before: Generation | None, max_rows: int) -> list[StepRange]:
    covered = {} if before is None else before.covered
    plan: list[StepRange] = []
    for state in states:
        number = state.attempt.info.attempt
        after = covered.get(number, state.attempt.info.resume_step)
        plan += committed_ranges(state.attempt, state.writers, after, max_rows)
    return plan


def _build(
    paths: IndexPaths,
    run: RunReader,
    states: Sequence[AttemptState],
    plan: Sequence[StepRange],
    progress: Progress | None,
) -> list[ShardInfo]:
    tokenizer = None if run.info.tokenizer_file is None else RunTokenizer(run)
    by_number = {state.attempt.info.attempt: state for state in states}
    total, done, built = sum(steps.num_rows for steps in plan), 0, []
    for steps in plan:
        state = by_number[steps.attempt]
        rows = read_rows(state.attempt, state.writers, steps)
        if rows.num_rows:
            built.append(build_shard(paths, run, steps, rows, tokenizer))
        done += steps.num_rows
        if progress is not None:
            progress(done, total)
    return built


def _next(
    paths: IndexPaths,
    run: RunReader,
    before: Generation | None,
    built: Sequence[ShardInfo],
    intervals: Sequence[StepInterval],
) -> Generation:
    covered = dict(before.covered) if before is not None else {}
    for info in built:
        covered[info.attempt] = max(covered.get(info.attempt, 0), info.last_step)
    names = (before.shards if before is not None else ()) + tuple(info.name for info in built)
    return new_generation(paths, run.info.run_id, tuple(sorted(names)), covered, _last_attempt(intervals))


def _canonical(states: Sequence[AttemptState]) -> list[StepInterval]:
    latest = canonical_attempt({state.attempt.info.attempt: state.last_step for state in states})
    return [] if latest is None else lineage([state.attempt.info for state in states], latest)


def _last_attempt(intervals: Sequence[StepInterval]) -> int | None:
    return intervals[-1].attempt if intervals else None


def _remove_unfinished(paths: IndexPaths) -> None:
    if paths.shards.exists():
        for entry in paths.shards.iterdir():
            if entry.name.endswith(BUILDING):
                shutil.rmtree(entry)


def _report(paths: IndexPaths, generation: Generation, *, built: int, changed: bool) -> IndexReport:
    infos = [ShardInfo.read(paths.shard_dir(name)) for name in generation.shards]
    return IndexReport(
        generation=generation.number,
        published=changed,
        shards_built=built,
        num_shards=len(infos),
        num_sequences=sum(info.num_sequences for info in infos),
        num_tokens=sum(info.num_tokens for info in infos),
        last_step=max((info.last_step for info in infos), default=0),
    )
