"""Coroutines in tests, in whichever order these run: Playwright leaves an event loop running in the main thread."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["run_coroutine"]

T = TypeVar("T")


def run_coroutine(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a thread of its own, which has no loop yet."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, main).result()
