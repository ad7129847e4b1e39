"""Keys: who may ask which runs about which sources, with which actions, how much, until when.

A key is `kiseki_<id>_<secret>`; the secret holds 256 random bits, so that its SHA-256 is enough to keep. The file of keys
is for its owner alone (0600), carries a hash of itself, and is replaced whole. A revoked key stays in it, to be named in logs.
"""

import dataclasses
import fcntl
import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from indexer.durable import replace_file
from indexer.selection.visibility import Visibility
from search_api.permissions import Action
from train_hooks.export_format.errors import DamageError, InputError
from train_hooks.export_format.json_files import decode_document, encode_document

__all__ = ["Key", "KeyFile"]

FORMAT = "kiseki-keys-v1"
_TOKEN = re.compile(r"kiseki_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """A key as it is kept. None means no bound.

    sources, hidden_sources: as in `Visibility`. tokens_per_day: of training data that it is shown, by UTC day.
    snippet_tokens: of context on either side of a hit.
    """

    key_id: str
    sha256: str
    name: str
    created_unix_s: float
    expires_unix_s: float | None = None
    revoked_unix_s: float | None = None
    runs: tuple[str, ...] | None = None
    actions: tuple[str, ...] | None = None
    sources: tuple[str, ...] | None = None
    hidden_sources: tuple[str, ...] = ()
    tokens_per_day: int | None = None
    requests_per_minute: int | None = None
    snippet_tokens: int | None = None

    def __post_init__(self) -> None:
        unknown = set(self.actions or ()) - {str(action) for action in Action}
        if unknown:
            raise InputError(f"actions: expected some of {', '.join(Action)}, found {', '.join(sorted(unknown))}")
        if not self.name.strip():
            raise InputError("expected a name for the key, found none")
        for name in ("tokens_per_day", "requests_per_minute", "snippet_tokens"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InputError(f"{name}: expected a number ≥ 0, found {value}")

    def in_force(self, now_unix_s: float) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_unix_s is None and (self.expires_unix_s is None or now_unix_s < self.expires_unix_s)

    def allows_run(self, run_id: str) -> bool:
        return self.runs is None or run_id in self.runs

    def allows(self, action: Action) -> bool:
        return self.actions is None or action in self.actions

    @property
    def visibility(self) -> Visibility:
        """What it may see of a run."""
        return Visibility(
            sources=None if self.sources is None else frozenset(self.sources),
            hidden_sources=frozenset(self.hidden_sources),
        )


class KeyFile:
    """The file of keys. A server looks at its status at each request, and reads it again when it changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._keys: dict[str, Key] = {}

    def find(self, token: str) -> Key | None:
        """The key of a token, in force or not. Raises DamageError where the file is not whole."""
        match, keys = _TOKEN.fullmatch(token), self._current()
        key = keys.get(match[1]) if match else None
        found = hashlib.sha256(token.encode("utf-8", "backslashreplace")).hexdigest()
        return key if hmac.compare_digest(found, key.sha256 if key is not None else "0" * 64) else None

    def with_id(self, key_id: str) -> Key | None:
        """A key as it is now. Raises DamageError."""
        return self._current().get(key_id)

    def _current(self) -> dict[str, Key]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise DamageError(f"the file of keys {self._path} does not read: {error}") from error
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        with self._lock:
            if seen != self._seen:
                self._keys, self._seen = {key.key_id: key for key in self.read()}, seen
            return self._keys

    def read(self) -> list[Key]:
        """All keys, the oldest first; none where there is no file. Raises DamageError."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        document = decode_document(self._path, data)
        if document.get("format") != FORMAT:
            raise DamageError(f"{self._path}: expected format {FORMAT}; a newer kiseki may have written it")
        return [_key(item) for item in document["keys"]]  # type: ignore[attr-defined]

    def create(self, name: str, **scope: object) -> tuple[Key, str]:
        """A new key and its token, which is kept nowhere. `scope` are fields of Key. Raises InputError."""
        key_id = secrets.token_hex(6)
        token = f"kiseki_{key_id}_{secrets.token_urlsafe(32)}"
        digest = hashlib.sha256(token.encode("ascii")).hexdigest()
        key = Key(key_id=key_id, sha256=digest, name=name, created_unix_s=time.time(), **scope)  # type: ignore[arg-type]
        with self._locked():
            self._write([*self.read(), key])
        return key, token

    def revoke(self, key_id: str) -> Key:
        """End a key, now. Raises InputError where there is none of this id in force."""
        with self._locked():
            keys = {key.key_id: key for key in self.read()}
            if key_id not in keys or keys[key_id].revoked_unix_s is not None:
                raise InputError(f"expected the id of a key in force, found {key_id!r}; see `kiseki keys list`")
            keys[key_id] = dataclasses.replace(keys[key_id], revoked_unix_s=time.time())
            self._write(list(keys.values()))
        return keys[key_id]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_name(self._path.name + ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _write(self, keys: Sequence[Key]) -> None:
        document = {"format": FORMAT, "keys": [dataclasses.asdict(key) for key in keys]}
        replace_file(self._path, encode_document(document), mode=0o600)


def _key(item: dict[str, object]) -> Key:
    lists = {name: tuple(value) for name, value in item.items() if isinstance(value, list)}
    return Key(**{**item, **lists})  # type: ignore[arg-type]
