"""Where compiled search kernels are kept, and a word to who waits for their first compilation."""

import os
from pathlib import Path

import indexer.spans
from ui.terminal import console

__all__ = ["kernel_directory", "say_if_compiling"]


def kernel_directory() -> Path:
    """Where numba keeps them."""
    place = os.environ.get("NUMBA_CACHE_DIR")
    return Path(place) if place else Path(indexer.spans.__file__).parent / "kernels" / "__pycache__"


def say_if_compiling(kernel: str) -> None:
    """A line on standard error where `kernel` was never compiled on this machine: the search will take a while, once."""
    if not any(kernel_directory().rglob(f"*.{kernel}-*.nbi")):
        console.errors.print(
            "compiling the search kernels, once for this installation: one to three minutes", style="dim"
        )
