"""The processes that run strangers' SQL: one sandbox a run, of its current generation, started when it is first asked for."""

import threading

from indexer.reader import IndexReader
from indexer.sql.sandbox import SqlSandbox

__all__ = ["Sandboxes"]


class Sandboxes:
    """The sandboxes of one server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, tuple[int, SqlSandbox]] = {}

    def of(self, reader: IndexReader) -> SqlSandbox:
        """The sandbox of a run's generation; that of the one before ends with its query. Raises InputError."""
        run_id, generation = reader.info.run_id, reader.generation.number
        with self._lock:
            known = self._open.get(run_id)
            if known is not None and known[0] == generation:
                return known[1]
            sandbox = SqlSandbox(reader)
            self._open[run_id] = (generation, sandbox)
        if known is not None:
            known[1].close()
        return sandbox

    def close(self) -> None:
        """End them all."""
        with self._lock:
            for _, sandbox in self._open.values():
                sandbox.close()
            self._open.clear()
