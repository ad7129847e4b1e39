"""The runs that a server has open, each with its current generation and those that cursors still use.

A new generation is opened and warmed up beside the one that answers, by one thread of its own, and takes its place when it
is ready. A request keeps the reader that it began with.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indexer.reader import IndexReader
from indexer.search.search import SearchOptions, search
from indexer.selection.rows import Selection
from indexer.storage.generations import published
from indexer.trace.counts import count_of_ngram
from indexer.trace.ngrams import hits_of_ngram
from indexer.trace.trace import trace
from search_api.problems import Problem
from search_api.settings import Limits
from train_hooks.export_format.errors import InputError, KisekiError

__all__ = ["Runs"]

_log = logging.getLogger("kiseki.server")


@dataclass(slots=True)
class _Open:
    """A run: its current reader, and replaced ones by generation with the time of their replacement."""

    current: IndexReader
    replaced: dict[int, tuple[float, IndexReader]] = field(default_factory=dict)


class Runs:
    """Readers by run id."""

    def __init__(self, run_dirs: Sequence[Path], limits: Limits) -> None:
        """Opens every run. Raises InputError for two of one name; RunError, IncompleteError, DamageError as a reader does."""
        self._limits = limits
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}
        self.num_reloads, self.num_failed_reloads = 0, 0
        for run_dir in run_dirs:
            reader = IndexReader.open(run_dir)
            if reader.info.run_id in self._open:
                raise InputError(
                    f"expected runs of different names, found two called {reader.info.run_id}; serve one of them"
                )
            self._open[reader.info.run_id] = _Open(reader)

    def ids(self) -> list[str]:
        """All run ids."""
        return sorted(self._open)

    def current(self, run_id: str) -> IndexReader:
        """The newest generation of a run that is there."""
        return self._open[run_id].current

    def of_generation(self, run_id: str, generation: int) -> IndexReader:
        """A generation by number. Raises Problem where it was replaced too long ago, or never was."""
        run = self._open[run_id]
        if run.current.generation.number == generation:
            return run.current
        found = run.replaced.get(generation)
        if found is None:
            raise Problem(
                "generation-expired",
                f"generation {generation} of run {run_id} was replaced by {run.current.generation.number} more than "
                f"{self._limits.generation_keep_s:g} s ago; start again without a cursor",
            )
        return found[1]

    def warm_up(self) -> None:
        """Load compiled kernels, tables and tokenizers, so that the first request need not."""
        for run in self._open.values():
            _warm_up(run.current)

    def reload(self) -> None:
        """Open the generations that were published since. What fails is logged, and the old generation goes on."""
        with self._lock:
            for run_id, run in self._open.items():
                try:
                    self._reload_run(run)
                except (KisekiError, OSError) as error:
                    self.num_failed_reloads += 1
                    _log.error("run %s: the new generation does not open: %s", run_id, error)

    def _reload_run(self, run: _Open) -> None:
        old, now = run.current, time.monotonic()
        generation = published(old.paths)
        if generation is not None and generation.number != old.generation.number:
            reader = IndexReader(old.run, old.paths, generation, before=old)
            _warm_up(reader)
            replaced = {**run.replaced, old.generation.number: (now, old)}
            run.replaced, run.current = replaced, reader
            self.num_reloads += 1
            _log.info("run %s: generation %d", reader.info.run_id, generation.number)
        kept = {n: item for n, item in run.replaced.items() if now - item[0] < self._limits.generation_keep_s}
        if len(kept) < len(run.replaced):
            run.replaced = kept


def _warm_up(reader: IndexReader) -> None:
    """Ask a little of everything: metadata of every shard, and each kernel that answers a question."""
    for shard in reader.shards:
        reader.describe(reader.sequence_at(shard, 0))
    token_ids = reader.shards[0].tokens(0)[:64].tolist()
    trace(reader, token_ids=token_ids)
    count_of_ngram(reader, token_ids[:2], Selection())
    count_of_ngram(reader, token_ids[:2], Selection(lineage="all", dp_rank=0))
    first = hits_of_ngram(reader, token_ids[:1], Selection(), limit=1)
    hits_of_ngram(reader, token_ids[:1], Selection(), after=first.last, limit=1)
    search(reader, f"ids:[{' '.join(map(str, token_ids[:2]))}]", SearchOptions(limit=1))
    if reader.info.tokenizer_file is not None:
        search(reader, "a", SearchOptions(limit=1))
