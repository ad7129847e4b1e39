"""The read log: one JSON line for each answered question, appended and never changed. Who asked what, and how much was shown.

It holds the questions themselves (cut at 4,000 characters), so it is for its owner alone (0600), and no key. A line is
written before its answer goes out; a log that cannot be written stops the answers.
"""

import datetime
import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from train_hooks.export_format.errors import InputError

__all__ = ["ReadLog"]

_MAX_QUESTION = 4000


class ReadLog:
    """The log at a path, or none."""

    def __init__(self, path: Path | None) -> None:
        """Raises InputError where the file cannot be opened."""
        self._path, self._fd = path, -1
        self._lock = threading.Lock()
        if path is not None:
            try:
                self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            except OSError as error:
                raise InputError(f"the read log does not open: {error}") from error

    def append(self, *, key_id: str, action: str, run_id: str, request_id: str, question: str, num_tokens: int) -> None:
        """Write a line. Raises OSError where the disk refuses."""
        if self._fd < 0:
            return
        line = {
            "unix_time_s": round(time.time(), 3), "request_id": request_id, "key": key_id, "action": action, "run": run_id,
            "num_tokens": num_tokens, "question": question[:_MAX_QUESTION],
        }  # fmt: skip
        data = json.dumps(line).encode("ascii") + b"\n"
        with self._lock:
            os.write(self._fd, data)

    def spent_today(self) -> Mapping[str, int]:
        """Tokens shown to each key since 00:00 UTC. Torn lines are passed over."""
        spent: dict[str, int] = {}
        if self._path is None:
            return spent
        now = datetime.datetime.now(datetime.UTC)
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
        with self._path.open(encoding="ascii", errors="replace") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if line.get("unix_time_s", 0) >= midnight:
                    spent[line["key"]] = spent.get(line["key"], 0) + int(line["num_tokens"])
        return spent

    def close(self) -> None:
        """Give the file back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
