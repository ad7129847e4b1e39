"""Distinct numbers against a set."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from indexer.storage.distinct import distinct


@given(st.lists(st.integers(-3, 20) | st.integers(-(1 << 63), (1 << 63) - 1)))
def test_distinct_numbers_ascend(numbers: list[int]) -> None:
    assert distinct(np.array(numbers, np.int64)).tolist() == sorted(set(numbers))
