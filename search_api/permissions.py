"""What a key may do."""

from enum import StrEnum

__all__ = ["Action"]


class Action(StrEnum):
    """What a request does: the subject of its path. `metrics` reads `/metrics`."""

    RUNS = "runs"
    TRACE = "trace"
    COUNT = "count"
    HITS = "hits"
    SEARCH = "search"
    SEQUENCES = "sequences"
    STEPS = "steps"
    DOCUMENTS = "documents"
    SQL = "sql"
    JOBS = "jobs"
    METRICS = "metrics"
