"""The last finds of infini-gram's clients: what their ranks stand for, until the server starts anew."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from train_hooks.export_format.errors import QueryError

__all__ = ["RANKS_EACH", "Find", "Finds"]

MAX_FINDS, RANKS_EACH = 4096, 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Find:
    """A find that was answered: who may go on with it, of which generation, for which tokens."""

    owner: str
    run_id: str
    generation: int
    token_ids: tuple[int, ...]


class Finds:
    """The last MAX_FINDS, each with RANKS_EACH ranks of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._finds: OrderedDict[int, Find] = OrderedDict()
        self._last = 0

    def add(self, find: Find) -> int:
        """The first rank of a find."""
        with self._lock:
            self._last += 1
            self._finds[self._last] = find
            while len(self._finds) > MAX_FINDS:
                self._finds.popitem(last=False)
            return self._last * RANKS_EACH

    def of(self, rank: int, owner: str) -> Find:
        """The find that a rank is of. Raises QueryError where it is not the owner's, or was forgotten."""
        with self._lock:
            find = self._finds.get(rank // RANKS_EACH)
        if find is None or find.owner != owner:
            raise QueryError("rank: expected one that `find` gave to this key lately; ask `find` again")
        return find
