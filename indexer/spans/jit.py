"""The one way in which a kernel is compiled: without the GIL, cached on disk, typed for mypy.

numba notices a change of the file that a cached kernel stands in, not of the files that it calls into: after an edit of
one kernel module delete `__pycache__/*.nb*`.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["array_at", "jit"]

P = ParamSpec("P")
R = TypeVar("R")


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile on first call for the dtypes it is called with; the machine code is kept beside the module."""
    return cast("Callable[P, R]", njit(nogil=True, cache=True)(function))


@intrinsic
def _pointer(typing_context: Any, number: Any) -> Any:  # noqa: ARG001
    """An i64 as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.voidptr(types.int64), generate


pointer: Any = _pointer


def _array_at(number: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """The C-contiguous array of that shape and dtype at an address; whoever gives the address keeps the memory."""
    return carray(pointer(number), shape, dtype)


array_at = jit(_array_at)
