"""What the ranks stand for that `find` of infini-gram's API gave out lately. They are forgotten when the server starts anew."""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from train_hooks.export_format.errors import QueryError

__all__ = ["RANKS_EACH", "InfinigramRanks", "RankedNgram"]

MAX_NGRAMS, RANKS_EACH = 4096, 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class RankedNgram:
    """An n-gram that was found, in which generation. owner: the fingerprint of who may use its ranks."""

    owner: str
    run_id: str
    generation: int
    token_ids: tuple[int, ...]


class InfinigramRanks:
    """The last MAX_NGRAMS, each with RANKS_EACH ranks of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ngrams: OrderedDict[int, RankedNgram] = OrderedDict()
        self._last = 0

    def add(self, ngram: RankedNgram) -> int:
        """Remember an n-gram; returns its first rank."""
        with self._lock:
            self._last += 1
            self._ngrams[self._last] = ngram
            while len(self._ngrams) > MAX_NGRAMS:
                self._ngrams.popitem(last=False)
            return self._last * RANKS_EACH

    def ngram_of(self, rank: int, owner: str) -> RankedNgram:
        """The n-gram that a rank is of. Raises QueryError where it is not the owner's, or was forgotten."""
        with self._lock:
            ngram = self._ngrams.get(rank // RANKS_EACH)
        if ngram is None or ngram.owner != owner:
            raise QueryError("rank: expected one that `find` gave to this key lately; ask `find` again")
        return ngram
