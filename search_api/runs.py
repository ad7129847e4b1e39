"""The runs that a server has open. A newly published generation is opened at the next request that asks for the run."""

import threading
from collections.abc import Sequence
from pathlib import Path

from indexer.generations import published
from indexer.index_reader import IndexReader
from indexer.trace import trace
from search_api.problems import Problem

__all__ = ["Runs"]


class Runs:
    """Readers by run id. A reader in use stays valid after another one has taken its place."""

    def __init__(self, run_dirs: Sequence[Path]) -> None:
        """Opens every run. Raises RunError, IncompleteError, DamageError as `IndexReader.open` does."""
        self._lock = threading.Lock()
        self._readers: dict[str, IndexReader] = {}
        for run_dir in run_dirs:
            reader = IndexReader.open(run_dir)
            if reader.info.run_id in self._readers:
                raise Problem(400, "run", "Two runs of one name", f"two of the runs are called {reader.info.run_id}")
            warm_up(reader)
            self._readers[reader.info.run_id] = reader

    def ids(self) -> list[str]:
        """All run ids."""
        return sorted(self._readers)

    def reader(self, run_id: str | None) -> IndexReader:
        """The newest generation of a run; None means the only one. Raises Problem."""
        if run_id is None and len(self._readers) == 1:
            run_id = next(iter(self._readers))
        if run_id is None:
            raise Problem(400, "run", "Which run?", f'expected "run": one of {", ".join(self.ids())}')
        if run_id not in self._readers:
            raise Problem(404, "run", "No such run", f"found no run {run_id!r}; there is {', '.join(self.ids())}")
        return self._fresh(run_id)

    def _fresh(self, run_id: str) -> IndexReader:
        with self._lock:
            reader = self._readers[run_id]
            now = published(reader.paths)
            if now is not None and now.number != reader.generation.number:
                reader = IndexReader(reader.run, reader.paths, now)
                warm_up(reader)
                self._readers[run_id] = reader
            return reader


def warm_up(reader: IndexReader) -> None:
    """Load compiled kernels, tables and tokenizer, so that the first request need not: trace a stretch of the data."""
    trace(reader, token_ids=reader.shards[0].tokens(0)[:64].tolist())
