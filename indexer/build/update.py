"""`kiseki index`: bring the index of a run up to what its export holds. Idempotent; killed anywhere, it goes on.

Each attempt's committed steps after the ones that are covered are cut into ranges, small neighbours are joined
(`planning`), and every range that is no shard yet is built from the export, several side by side. Then the new rows go to
the parts of the catalog, and one rename publishes the new generation. Steps committed meanwhile wait for the next call.
"""

import contextlib
import dataclasses
import functools
import multiprocessing
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from indexer.build.catalog import AttemptState, write_catalog
from indexer.build.export_rows import read_range
from indexer.build.parts import undamaged_parts
from indexer.build.parts_update import update_parts
from indexer.build.planning import committed_ranges, merge_ranges
from indexer.build.shard import build_shard
from indexer.durable import remove_unfinished_directories
from indexer.limits import DEFAULT_SHARD_TOKENS
from indexer.metrics.imported import newest_import_unix_s
from indexer.storage.generations import (
    Generation,
    locked,
    new_generation,
    publish,
    published,
    remove_retired,
    write_generation,
)
from indexer.storage.paths import IndexPaths
from indexer.storage.shard import Shard, ShardDamage, ShardInfo, manifest_sha256, range_of_name, shard_name
from indexer.storage.step_range import StepRange
from indexer.tokenizer.tokenizer import RunTokenizer
from train_hooks.export_format.errors import IncompleteError, InputError, RunError
from train_hooks.export_format.lineage import StepInterval, canonical_attempt, lineage
from train_hooks.export_format.reading.reader import RunReader

__all__ = ["IndexOptions", "IndexReport", "update_index"]

BUILD_BYTES_PER_TOKEN = 40
MIN_SHARD_TOKENS = 100_000
Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexOptions:
    """shard_tokens: tokens in a shard, at most. jobs: shards built side by side. memory_limit_bytes: for all of them.

    verify: read every byte of the shards that are there, and build those again that do not match their manifest.
    rebuild: names of shards that are built again from the export.
    """

    shard_tokens: int = DEFAULT_SHARD_TOKENS
    jobs: int = 1
    memory_limit_bytes: int | None = None
    verify: bool = False
    rebuild: frozenset[str] = frozenset()

    def fitted(self) -> "IndexOptions":
        """Fewer jobs, then smaller shards, until the memory limit holds. Raises InputError where nothing fits."""
        if self.shard_tokens < 1 or self.jobs < 1:
            raise InputError(f"expected shard_tokens and jobs ≥ 1, found {self.shard_tokens} and {self.jobs}")
        if self.memory_limit_bytes is None:
            return self
        tokens_at_once = self.memory_limit_bytes // BUILD_BYTES_PER_TOKEN
        if tokens_at_once < MIN_SHARD_TOKENS:
            raise InputError(
                f"memory limit: expected at least {MIN_SHARD_TOKENS * BUILD_BYTES_PER_TOKEN} bytes, "
                f"found {self.memory_limit_bytes}"
            )
        jobs = max(1, min(self.jobs, tokens_at_once // self.shard_tokens))
        return dataclasses.replace(self, shard_tokens=min(self.shard_tokens, tokens_at_once), jobs=jobs)


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
    run_dir: Path | str, options: IndexOptions | None = None, *, progress: Progress | None = None
) -> IndexReport:
    """Index all committed steps of a run. `progress` is told (tokens done, tokens in all).

    Raises RunError for a directory that is no run, IncompleteError where nothing is committed yet or another process
    indexes, DamageError where the export does not match its hashes.
    """
    options = (options or IndexOptions()).fitted()
    run = RunReader(run_dir)
    paths = IndexPaths(run.paths.run_dir)
    with locked(paths):
        for directory in (paths.shards, paths.parts):
            remove_unfinished_directories(directory)
        before = published(paths)
        if before is not None and before.run_id != run.info.run_id:
            raise RunError(
                f"{paths.index} is of run {before.run_id}, the export of {run.info.run_id}; delete the index"
            )
        states = [AttemptState(attempt) for attempt in run.attempts()]
        old = _undamaged_shards(paths, before, options)
        wanted = _plan(states, before, old, _max_size(run, options), options.jobs)
        if not wanted:
            raise IncompleteError(f"{run.paths.run_dir} has no committed step yet; run `kiseki index` again later")
        intervals = _canonical(states)
        have = {info.name for info in old}
        missing = [steps for steps in wanted if shard_name(steps) not in have]
        parts = [] if before is None else undamaged_parts(paths, before.parts, verify=options.verify)
        num_notes = sum(sum(state.num_notes.values()) for state in states)
        if before is not None and not missing and _is_current(before, paths, intervals, len(parts), num_notes):
            return _report(before, old, built=0, changed=False)
        with _workers(min(options.jobs, len(missing))) as workers:
            _build_shards(run, missing, workers, progress)
            infos = [ShardInfo.read(paths.shard_dir(shard_name(steps))) for steps in wanted]
            of_parts = update_parts(paths, parts, infos, workers)
        generation = new_generation(
            paths,
            run.info.run_id,
            {info.name: manifest_sha256(paths.shard_dir(info.name)) for info in infos},
            _covered(infos),
            _last_attempt(intervals),
            of_parts,
            num_notes,
        )
        write_catalog(paths, generation, run, states, infos, intervals)
        write_generation(paths, generation)
        publish(paths, generation)
        remove_retired(paths)
        return _report(generation, infos, built=len(missing), changed=True)


def _is_current(
    before: Generation, paths: IndexPaths, intervals: Sequence[StepInterval], num_parts: int, num_notes: int
) -> bool:
    """Whether nothing but new steps could change the published generation."""
    return (
        before.canonical_attempt == _last_attempt(intervals)
        and before.num_notes == num_notes
        and num_parts == len(before.parts) > 0
        and before.directory == str(paths.index.resolve())
        and newest_import_unix_s(paths) <= before.created_unix_s
    )


def _undamaged_shards(paths: IndexPaths, before: Generation | None, options: IndexOptions) -> list[ShardInfo]:
    """The published shards that are whole and not to be rebuilt; the others are removed, so that they are built again."""
    sound = []
    for name, manifest in {}.items() if before is None else before.shards.items():
        directory = paths.shard_dir(name)
        try:
            shard = Shard(directory, manifest)
            if options.verify:
                shard.check_hashes()
            if name in options.rebuild:
                raise ShardDamage(name, f"{directory} is to be built again")
            sound.append(shard.info)
        except ShardDamage:
            shutil.rmtree(directory, ignore_errors=True)
    return sound


def _plan(
    states: Sequence[AttemptState], before: Generation | None, old: Sequence[ShardInfo], max_size: int, jobs: int
) -> list[StepRange]:
    """The shards that the next generation should have."""
    ranges = [
        StepRange(attempt=info.attempt, first_step=info.first_step, last_step=info.last_step, size=info.num_tokens)
        for info in old
    ]
    have = {info.name for info in old}
    for name in () if before is None else before.shards:
        place = range_of_name(name)
        if name not in have and place is not None:  # it is damaged or gone: the same steps are built again
            ranges.append(StepRange(attempt=place[0], first_step=place[1], last_step=place[2], size=max_size))
    for state in states:
        info = state.attempt.info
        after = info.resume_step if before is None else before.covered.get(info.attempt, info.resume_step)
        ranges += committed_ranges(state.summary, after, max_size, jobs)
    return sorted(ranges) if before is None else merge_ranges(ranges, max_size)


def _max_size(run: RunReader, options: IndexOptions) -> int:
    """Tokens of a shard: those of as many whole sequences as `shard_tokens` holds."""
    return max(1, options.shard_tokens // run.info.sequence_length) * run.info.sequence_length


def _workers(jobs: int) -> contextlib.AbstractContextManager[Executor | None]:
    """Processes for what is done side by side; None where it is done here, one thing after the other."""
    if jobs <= 1:
        return contextlib.nullcontext()
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def _build_shards(
    run: RunReader, missing: Sequence[StepRange], workers: Executor | None, progress: Progress | None
) -> None:
    total, done = sum(steps.size for steps in missing), 0
    for steps in _built_ranges(run.paths.run_dir, missing, workers):
        done += steps.size
        if progress is not None:
            progress(done, total)


def _built_ranges(run_dir: Path, missing: Sequence[StepRange], workers: Executor | None) -> Iterator[StepRange]:
    if workers is None:
        for steps in missing:
            yield _build_range(run_dir, steps)
        return
    for future in as_completed([workers.submit(_build_range, run_dir, steps) for steps in missing]):
        yield future.result()


def _build_range(run_dir: Path, steps: StepRange) -> StepRange:
    """Build one shard from the export; a task that needs nothing but the run directory."""
    run = RunReader(run_dir)
    attempt = run.attempt(steps.attempt)
    data = read_range(attempt, attempt.writers(), steps)
    build_shard(IndexPaths(run_dir), run, data, _tokenizer_of(run_dir, run.info.tokenizer_sha256))
    return steps


@functools.lru_cache(maxsize=1)
def _tokenizer_of(run_dir: Path, sha256: str | None) -> RunTokenizer | None:
    """The run's tokenizer, which takes as long to load as a small shard to build."""
    return None if sha256 is None else RunTokenizer(RunReader(run_dir))


def _covered(infos: Sequence[ShardInfo]) -> dict[int, int]:
    covered: dict[int, int] = {}
    for info in infos:
        covered[info.attempt] = max(covered.get(info.attempt, 0), info.last_step)
    return covered


def _canonical(states: Sequence[AttemptState]) -> list[StepInterval]:
    latest = canonical_attempt({state.attempt.info.attempt: state.last_step for state in states})
    return [] if latest is None else lineage([state.attempt.info for state in states], latest)


def _last_attempt(intervals: Sequence[StepInterval]) -> int | None:
    return intervals[-1].attempt if intervals else None


def _report(generation: Generation, infos: Sequence[ShardInfo], *, built: int, changed: bool) -> IndexReport:
    return IndexReport(
        generation=generation.number,
        published=changed,
        shards_built=built,
        num_shards=len(infos),
        num_sequences=sum(info.num_sequences for info in infos),
        num_tokens=sum(info.num_tokens for info in infos),
        last_step=max((info.last_step for info in infos), default=0),
    )
