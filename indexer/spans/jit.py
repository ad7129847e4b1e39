"""The one way in which a kernel is compiled: without the GIL, cached on disk, typed for mypy.

numba notices a change of the file that a cached kernel stands in, not of the files that it calls into: after an edit of
one kernel module delete `__pycache__/*.nb*`.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = ["array_at", "jit", "prefetch"]

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


@intrinsic
def _prefetch(typing_context: Any, number: Any) -> Any:  # noqa: ARG001
    """Ask for the cache line at an address that is read soon."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cast("Any", cgutils).get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [builder.inttoptr(arguments[0], byte), word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


pointer: Any = _pointer
prefetch: Any = _prefetch


def _array_at(number: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """The C-contiguous array of that shape and dtype at an address; whoever gives the address keeps the memory."""
    return carray(pointer(number), shape, dtype)


array_at = jit(_array_at)
