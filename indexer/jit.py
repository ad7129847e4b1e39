"""The one way in which a kernel is compiled: without the GIL, cached on disk, typed for mypy.

numba notices a change of the file that a cached kernel stands in, not of the files that it calls into. After a `git pull` a
kernel could so call what is gone, and write where nothing is its own. So cached kernels that are older than a module
that they may call into are removed: one of their own folder, of `spans/kernels`, or this one.
"""

import contextlib
import functools
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

__all__ = [
    "array_at",
    "atomic_add",
    "cycles",
    "forget_older",
    "jit",
    "jit_inline",
    "jit_short",
    "prefetch",
    "uncounted",
    "will_need",
]

P = ParamSpec("P")
R = TypeVar("R")
WILL_NEED = 3
"""POSIX_MADV_WILLNEED, of the same value everywhere."""
PAGESIZE = mmap.PAGESIZE
SHARED_KERNELS = Path(__file__).parent / "spans" / "kernels"


@functools.cache
def forget_older(directory: Path) -> None:
    """Remove a directory's cached kernels that are older than the newest module that they may call into.

    Done once for each directory, when the first of its kernels is defined.
    """
    called = [*directory.glob("*.py"), *SHARED_KERNELS.glob("*.py"), Path(__file__)]
    newest = max(module.stat().st_mtime_ns for module in called)
    for cached in (directory / "__pycache__").glob("*.nb[ci]"):
        with contextlib.suppress(OSError):  # another process was faster, or it is not ours to remove
            if cached.stat().st_mtime_ns < newest:
                cached.unlink()


def _compiled(function: Callable[P, R], **options: Any) -> Callable[P, R]:
    forget_older(Path(function.__code__.co_filename).parent)
    return cast("Callable[P, R]", njit(cache=True, **options)(function))


def jit(function: Callable[P, R]) -> Callable[P, R]:
    """Compile on first call for the dtypes it is called with; the machine code is kept beside the module."""
    return _compiled(function, nogil=True)


def jit_short(function: Callable[P, R]) -> Callable[P, R]:
    """As `jit`, with the GIL kept: for what is done sooner than a thread that has it meanwhile would give it back."""
    return _compiled(function)


def jit_inline(function: Callable[P, R]) -> Callable[P, R]:
    """As `jit`, as a part of each caller.

    A kernel gets an array as seven numbers on the stack, a shard as sixty: to hand them on takes longer than many a kernel
    works. So that is for those that are called often and from few places.
    """
    return _compiled(function, nogil=True, forceinline=True)


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


@intrinsic
def _atomic_add(typing_context: Any, address: Any, number: Any) -> Any:  # noqa: ARG001
    """Add to an i64 that threads share, and return what it was. Whoever sees the sum sees what was written before it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        where = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", where, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _cycles(typing_context: Any) -> Any:  # noqa: ARG001
    """The processor's counter, which rises by one to four in a nanosecond."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        kind = ir.FunctionType(ir.IntType(64), [])
        return builder.call(
            cast("Any", cgutils).get_or_insert_function(builder.module, kind, "llvm.readcyclecounter"), []
        )

    return types.int64(), generate


pointer: Any = _pointer
prefetch: Any = _prefetch
atomic_add: Any = _atomic_add
cycles: Any = _cycles
madvise: Any = types.ExternalFunction("madvise", types.int32(types.int64, types.int64, types.int32))


def _array_at(number: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """The C-contiguous array of that shape and dtype at an address; whoever gives the address keeps the memory."""
    return carray(pointer(number), shape, dtype)


def _uncounted(array: NDArray[Any]) -> NDArray[Any]:
    """The same array without a count of its uses; whoever gives it keeps it.

    Counting is atomic, which lets the processor wait for all that it reads: where kernels hand arrays to each other between
    reads that miss the caches, it costs a third of the time.
    """
    return carray(pointer(array.ctypes.data), array.shape, array.dtype)


array_at = jit_inline(_array_at)
uncounted = jit(_uncounted)


def _will_need(address: int) -> None:
    """Ask the system to read the page at an address of a mapped file, and do not wait for it."""
    madvise(address // PAGESIZE * PAGESIZE, PAGESIZE, WILL_NEED)


will_need = jit(_will_need)
