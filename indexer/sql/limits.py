"""What a query of a stranger may take: time, memory, rows, bytes."""

from dataclasses import dataclass
from typing import Literal

from train_hooks.export_format.errors import InputError, QueryError

__all__ = ["SqlLimitError", "SqlLimits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SqlLimits:
    """What one query may take.

    deadline_s: from the call on, waiting for a free worker included. memory_bytes: what its process may grow by.
    max_rows, max_bytes: of the result (Arrow buffers); more is cut, and said to be.
    """

    deadline_s: float = 5.0
    memory_bytes: int = 384 << 20
    max_rows: int = 10_000
    max_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if min(self.deadline_s, self.memory_bytes, self.max_rows, self.max_bytes) <= 0:
            raise InputError(f"expected limits > 0, found {self}")


class SqlLimitError(QueryError):
    """A query that was ended at a limit: "deadline", "memory", or "busy" where no worker was free in time."""

    def __init__(self, limit: Literal["deadline", "memory", "busy"], message: str) -> None:
        super().__init__(message)
        self.limit = limit
