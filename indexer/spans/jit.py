"""The one way in which a kernel is compiled: without the GIL, cached on disk, typed for mypy.

numba notices a change of the file that a cached kernel stands in, not of the files that it calls into: after an edit of
one kernel module delete `__pycache__/*.nb*`.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from numba import njit

__all__ = ["jit"]

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile on first call for the dtypes it is called with; the machine code is kept beside the module."""
    return cast("Callable[P, R]", njit(nogil=True, cache=True)(function))
