"""What a server holds from its start to its end, in one record on `app.state.service`."""

from dataclasses import dataclass
from typing import Self

from search_api.cursors import CursorSigner
from search_api.gate import Gate
from search_api.infinigram_ranks import InfinigramRanks
from search_api.jobs import JobStore
from search_api.keys import KeyFile
from search_api.metrics import Metrics
from search_api.read_log import ReadLog
from search_api.runs import Runs
from search_api.sandboxes import Sandboxes
from search_api.settings import Settings
from search_api.workers import Workers

__all__ = ["Service"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """The parts of one server."""

    settings: Settings
    runs: Runs
    workers: Workers
    metrics: Metrics
    cursors: CursorSigner
    gate: Gate
    read_log: ReadLog
    jobs: JobStore
    infinigram_ranks: InfinigramRanks
    sandboxes: Sandboxes

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Opens everything that `settings` names. Raises KisekiError where something does not open."""
        limits = settings.limits
        runs, workers, read_log = Runs(settings.run_dirs, limits), Workers(limits), ReadLog(settings.read_log)
        gate = Gate(KeyFile(settings.keys_file) if settings.keys_file else None, limits, read_log.spent_today())
        gate.check()
        return cls(
            settings=settings, runs=runs, workers=workers, metrics=Metrics(runs, workers), cursors=CursorSigner(),
            gate=gate, read_log=read_log, jobs=JobStore(limits), infinigram_ranks=InfinigramRanks(),
            sandboxes=Sandboxes(),
        )  # fmt: skip

    def close(self) -> None:
        """Start nothing more, and give files back."""
        self.workers.close()
        self.jobs.close()
        self.sandboxes.close()
        self.read_log.close()
