"""The compiled passes against numpy."""

import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train_hooks.hook.tensors.kernels import kernels

KERNELS = kernels()  # compiled here, which takes longer than hypothesis allows for an example
I32 = np.iinfo(np.int32)
I64 = np.iinfo(np.int64)
KEPT = (0, 1, -1, -100, 65_535, 65_536, I32.max, I32.min)
LOST = (I32.max + 1, I32.min - 1, 1 << 32, (1 << 32) + 7, -(1 << 32), 1 << 62, I64.max, I64.min)


def narrowed(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int32] | None:
    """What the pass writes, None where it says that a value is lost; it must not write beyond."""
    target = np.full(len(values) + 8, 0x5A5A5A5A, np.int32)
    lost = KERNELS.narrow(values.ctypes.data, target.ctypes.data, len(values))
    assert (target[len(values) :] == 0x5A5A5A5A).all()
    return None if lost else target[: len(values)]


@given(st.lists(st.sampled_from(KEPT) | st.integers(I32.min, I32.max), max_size=300))
def test_values_of_int32_are_kept(values: list[int]) -> None:
    found = narrowed(np.array(values, np.int64))
    assert found is not None
    assert found.tolist() == values


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
@pytest.mark.parametrize("lost", LOST)
def test_one_wide_value_is_found_wherever_it_stands(size: int, lost: int) -> None:
    values = np.resize(np.array(KEPT, np.int64), size)
    assert narrowed(values) is not None
    for at in range(size):
        kept, values[at] = values[at], lost
        assert narrowed(values) is None
        values[at] = kept


@given(st.integers(1, 300), st.data())
def test_same_looks_at_every_value(size: int, data: st.DataObject) -> None:
    ours = np.random.default_rng(0).integers(I32.min, I32.max, size, np.int32)
    theirs = ours.astype(np.int64)
    theirs[data.draw(st.integers(0, size - 1))] ^= data.draw(st.sampled_from([0, 1, 1 << 32, -(1 << 63)]))
    expected = bool((ours == theirs).all())
    assert KERNELS.same(theirs.ctypes.data, ours.ctypes.data, size) == expected


def test_numba_is_not_imported_with_the_hook() -> None:
    code = "import sys, train_hooks.hook.hook; sys.exit('numba' in sys.modules or 'llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
