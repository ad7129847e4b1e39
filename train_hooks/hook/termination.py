"""SIGTERM: what was committed before it becomes durable, even where the main thread never runs Python again.

A rank that is stopped usually hangs in a collective, so a Python signal handler would not run. The interpreter's
C handler still writes the signal's number to the wakeup descriptor; a thread of ours reads it there, and

1. where the trainer has no handler of its own: closes the export (written, synced, sealed) and dies by the signal;
2. where it has one: makes durable what is committed and lets the trainer's handler decide. The export stays open.

Where the main thread does run Python, our handler keeps it waiting meanwhile, unless it was `busy` in the exporter, whose
locks it may hold; then it goes on and is to stop at `stop_if_dying`.

Forked children (loader workers) are given back the state before `watch`, lest a signal to them end the training.
"""

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["SigtermWatch", "watch_sigterm"]

_PATIENCE_S = 25.0  # torchrun sends SIGKILL 30 s after SIGTERM
_STOP, _HANDLED = b"\0", b"\xff"  # no signals
_watches: "weakref.WeakSet[SigtermWatch]" = weakref.WeakSet()


def watch_sigterm(
    *, flush: Callable[[], None], close: Callable[[], None], busy: Callable[[], bool]
) -> "SigtermWatch | None":
    """Watch for SIGTERM until `stop`.

    None where this is not the main thread, which alone may set handlers, or where the handler is not Python's.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) is None:
        return None
    return SigtermWatch(flush, close, busy)


class SigtermWatch:
    """Our place in the chain of SIGTERM handlers."""

    def __init__(self, flush: Callable[[], None], close: Callable[[], None], busy: Callable[[], bool]) -> None:
        self._flush, self._close, self._busy = flush, close, busy
        self._dying = False
        self._done = threading.Event()
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._previous: Any = signal.getsignal(signal.SIGTERM)
        self._previous_fd = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._handler)
        self._thread = threading.Thread(target=self._watch, name="kiseki-sigterm", daemon=True)
        self._thread.start()
        _watches.add(self)

    def stop(self) -> None:
        """Give the signal back. On the main thread; elsewhere, and where somebody came after us, only half of it."""
        _watches.discard(self)
        self._restore()
        for later in _watches:  # whoever came after us and goes on must not call us, nor write where we read
            if later._previous == self._handler:
                later._previous = self._previous
            if later._previous_fd == self._write.fileno():
                later._previous_fd = self._previous_fd
        self._notify(_STOP)
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=1.0)

    def _restore(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGTERM) == self._handler:
            signal.signal(signal.SIGTERM, self._previous)
        found = signal.set_wakeup_fd(-1)
        ours = found == self._write.fileno()
        with contextlib.suppress(OSError, ValueError):  # whoever had it before us may be gone
            signal.set_wakeup_fd(self._previous_fd if ours else found, warn_on_full_buffer=False)

    def in_child(self) -> None:
        """After a fork, in the child."""
        self._restore()
        self._read.close()
        self._write.close()

    def stop_if_dying(self) -> None:
        """Where the export is being closed for the signal that ends the process: wait for that end."""
        if self._dying:
            time.sleep(_PATIENCE_S)

    def _notify(self, message: bytes) -> None:
        with contextlib.suppress(OSError):
            self._write.send(message)

    def _deadly(self) -> bool:
        return signal.getsignal(signal.SIGTERM) == self._handler and self._previous == signal.SIG_DFL

    def _handler(self, number: int, frame: FrameType | None) -> None:
        """Where Python still runs on the main thread: wait for our thread, then do what the trainer wanted."""
        self._notify(_HANDLED)  # somebody may have taken the wakeup descriptor from us
        if not self._busy():
            self._done.wait(_PATIENCE_S)
        if callable(self._previous):
            self._previous(number, frame)

    def _watch(self) -> None:
        while True:
            number = self._read.recv(1)
            if number in (b"", _STOP):
                self._read.close()
                self._write.close()
                return
            if self._previous_fd >= 0 and number != _HANDLED:
                with contextlib.suppress(OSError):
                    os.write(self._previous_fd, number)
            if number == _HANDLED or number[0] == signal.SIGTERM:
                self._terminate()

    def _terminate(self) -> None:
        deadly = self._dying = self._deadly()
        work = threading.Thread(target=_quietly, args=(self._close if deadly else self._flush,), daemon=True)
        work.start()
        work.join(_PATIENCE_S)
        if deadly:
            # signal.signal belongs to the main thread, which may never come back to Python.
            ctypes.CDLL(None).signal(int(signal.SIGTERM), None)
            os.kill(os.getpid(), signal.SIGTERM)
        self._done.set()


def _quietly(work: Callable[[], None]) -> None:
    """An export that already failed has said so, or will; the signal must not wait for that."""
    with contextlib.suppress(Exception):
        work()


def _after_fork() -> None:
    """Whoever came last gives back first, so that what was there before all of us is there again."""
    left = list(_watches)
    while left:
        current = signal.getsignal(signal.SIGTERM)
        last = next((watch for watch in left if watch._handler == current), left[-1])
        left.remove(last)
        last.in_child()
    _watches.clear()


os.register_at_fork(after_in_child=_after_fork)
