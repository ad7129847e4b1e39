"""Who may pass: the key of a request, its rate, its budget of tokens.

1. With a file of keys every request about data needs one in force; without it, everybody may ask everything, and the server
   listens on loopback alone (`ui.serve`).
2. A rate is a bucket of `request_burst` that fills with so many requests a minute; one a key, or one an address for requests
   without a valid key.
3. A budget counts tokens of training data shown in a UTC day. It is looked at before an answer and charged after it, so that
   the last answer may go over it. It starts at what the read log says of today.
"""

import datetime
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from indexer.selection.visibility import EVERYTHING, Visibility
from search_api.keys import Key, KeyFile
from search_api.permissions import Action
from search_api.problems import Problem
from search_api.settings import Limits

__all__ = ["Access", "Gate", "RateLimiter", "TokenBudgets"]

_MAX_BUCKETS = 10_000
_PER_MINUTE = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """What one request may see. key: None where the server has no keys."""

    key: Key | None
    visibility: Visibility = EVERYTHING

    @property
    def key_id(self) -> str:
        """The key's id, for logs and for what belongs to it."""
        return self.key.key_id if self.key is not None else ""

    def allows_run(self, run_id: str) -> bool:
        """Whether the run is one of the key's."""
        return self.key is None or self.key.allows_run(run_id)


class RateLimiter:
    """A bucket for each name; those used longest ago are forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str, per_minute: float, burst: float, now_s: float) -> float:
        """Take one; returns 0, or the seconds until there is one again."""
        with self._lock:
            level, at = self._buckets.pop(name, (burst, now_s))
            level = min(burst, level + (now_s - at) * per_minute / _PER_MINUTE)
            wait_s = 0.0 if level >= 1 else (1 - level) * _PER_MINUTE / max(per_minute, 1e-9)
            self._buckets[name] = (level - 1 if level >= 1 else level, now_s)
            while len(self._buckets) > _MAX_BUCKETS:
                self._buckets.popitem(last=False)
            return wait_s


class TokenBudgets:
    """Tokens shown to each key today."""

    def __init__(self, spent_today: Mapping[str, int]) -> None:
        self._lock = threading.Lock()
        self._day = _today()
        self._spent = dict(spent_today)

    def spent(self, key_id: str) -> int:
        """Tokens shown today."""
        with self._lock:
            self._turn_day()
            return self._spent.get(key_id, 0)

    def spend(self, key_id: str, num_tokens: int) -> None:
        """Charge an answer."""
        with self._lock:
            self._turn_day()
            self._spent[key_id] = self._spent.get(key_id, 0) + num_tokens

    def _turn_day(self) -> None:
        if _today() != self._day:
            self._day, self._spent = _today(), {}


class Gate:
    """The gate of one server."""

    def __init__(self, keys: KeyFile | None, limits: Limits, spent_today: Mapping[str, int]) -> None:
        self._keys, self._limits = keys, limits
        self._rates, self.budgets = RateLimiter(), TokenBudgets(spent_today)

    def check(self) -> None:
        """Raises DamageError where there should be keys, and the file of them cannot be read."""
        if self._keys is not None:
            self._keys.find("")

    def admit(self, authorization: str, action: Action, client: str) -> Access:
        """Let a request pass. Raises Problem `unauthorized`, `forbidden`, `rate`, `budget`."""
        if self._keys is None:
            self._check_rate(f"address {client}", None)
            return Access(key=None)
        scheme, _, token = authorization.partition(" ")
        key = self._keys.find(token.strip()) if scheme.lower() == "bearer" else None
        if key is None or not key.in_force(time.time()):
            self._check_rate(f"address {client}", None)
            raise Problem("unauthorized", "expected `Authorization: Bearer KEY` with a key that is in force")
        self._check_rate(f"key {key.key_id}", key.requests_per_minute)
        if not key.allows(action):
            raise Problem("forbidden", f"the key does not allow {action}; it allows {', '.join(key.actions or ())}")
        self._check_budget(key)
        return Access(key=key, visibility=key.visibility)

    def readmit(self, access: Access) -> None:
        """Between the items of long work: the key is still in force, and has tokens left. Raises Problem."""
        if self._keys is None or access.key is None:
            return
        key = self._keys.with_id(access.key.key_id)
        if key is None or not key.in_force(time.time()):
            raise Problem("unauthorized", "the key is no longer in force")
        self._check_budget(key)

    def _check_rate(self, name: str, per_minute: int | None) -> None:
        rate = self._limits.requests_per_minute if per_minute is None else per_minute
        burst = min(self._limits.request_burst, max(1, rate))
        wait_s = self._rates.take(name, rate, burst, time.monotonic())
        if wait_s > 0:
            raise Problem(
                "rate", f"expected at most {rate} requests a minute; wait {wait_s:.1f} s", retry_after_s=wait_s
            )

    def _check_budget(self, key: Key) -> None:
        if key.tokens_per_day is not None and self.budgets.spent(key.key_id) >= key.tokens_per_day:
            now = datetime.datetime.now(datetime.UTC)
            midnight = (now + datetime.timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
            raise Problem(
                "budget",
                f"the key may see {key.tokens_per_day} tokens of training data a day, and has; ask again after 00:00 UTC",
                retry_after_s=(midnight - now).total_seconds(),
            )


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()
