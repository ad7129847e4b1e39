"""Compiled passes over the trainer's int64 tensors in CPU memory, called with addresses.

1. They check nothing: the caller answers for address, dtype, contiguity, and for memory that lives as long as the call.
2. They keep the interpreter lock. They take microseconds of the training thread, and whoever lets go of the interpreter
   there may wait for the writer thread to hand it back, which takes longer.
3. numba is imported and the passes are compiled when they are first asked for, in memory: 0.5 s and 110 MiB, which only
   a process that exports shall pay. There is no cache on disk for ranks to share, nor a directory that must be writable.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Kernels", "kernels"]


class Kernels(NamedTuple):
    """The compiled passes.

    narrow: (address of i64 [n], address of i32 [n], n) → 0 if the target holds the values, else the target is worthless.
    same: (address of i64 [n], address of i32 [n], n) → whether both hold the same values.
    """

    narrow: Callable[[int, int, int], int]
    same: Callable[[int, int, int], bool]


@functools.cache
def kernels() -> Kernels:
    """The passes, compiled once a process."""
    from numba import carray, njit, types  # type: ignore[attr-defined]

    i64, i32 = _pointer_to(types.int64), _pointer_to(types.int32)
    number = types.int64

    @njit(number(number, number, number))
    def narrow(source: int, target: int, size: int) -> Any:
        wide, small = carray(i64(source), size, np.int64), carray(i32(target), size, np.int32)
        bits = np.int64(0)
        for i in range(size):
            value = wide[i]
            bits |= value ^ (value >> 63)  # bits 31 to 62 must be what the sign is
            small[i] = np.int32(value)
        return bits >> 31

    @njit(types.boolean(number, number, number))
    def same(source: int, target: int, size: int) -> Any:
        wide, small = carray(i64(source), size, np.int64), carray(i32(target), size, np.int32)
        bits = np.int64(0)
        for i in range(size):
            bits |= wide[i] ^ np.int64(small[i])
        return bits == 0

    return Kernels(narrow, same)


def _pointer_to(element: Any) -> Any:
    """A function for compiled code: address → pointer to elements."""
    from numba import types
    from numba.extending import intrinsic

    def pointer(typing: Any, address: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(element)(address), generate  # type: ignore[no-untyped-call]

    return intrinsic(pointer)
