"""Numbers for Prometheus, of one server. A label is a route's template or a problem's kind, never what a client made up."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from search_api.runs import Runs
from search_api.workers import Workers

__all__ = ["Metrics"]

_METHODS = ("GET", "HEAD", "POST", "DELETE")
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """The registry of a server; the gauges are read when they are asked for."""

    def __init__(self, runs: Runs, workers: Workers) -> None:
        self._runs, self._workers = runs, workers
        registry = self._registry = CollectorRegistry()
        self._requests = Counter(
            "kiseki_requests", "Requests answered", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "kiseki_request_seconds", "Time to the end of the answer", ["route"], buckets=_BUCKETS, registry=registry
        )
        self.in_flight = Gauge("kiseki_requests_in_flight", "Requests not yet answered", registry=registry)
        pending = Gauge("kiseki_searches_pending", "Searches that run or wait", registry=registry)
        pending.set_function(lambda: workers.pending)
        self._generation = Gauge("kiseki_generation", "Published generation in use", ["run"], registry=registry)
        self._failed = Gauge("kiseki_shards_failed", "Shards that do not answer", ["run"], registry=registry)
        reloads = Gauge("kiseki_reloads", "Generations opened since the start", registry=registry)
        reloads.set_function(lambda: runs.num_reloads)
        failed = Gauge("kiseki_reloads_failed", "Generations that did not open", registry=registry)
        failed.set_function(lambda: runs.num_failed_reloads)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """The exposition format."""
        for run_id in self._runs.ids():
            reader = self._runs.current(run_id)
            self._generation.labels(run_id).set(reader.generation.number)
            self._failed.labels(run_id).set(len(reader.failed))
        return generate_latest(self._registry)
