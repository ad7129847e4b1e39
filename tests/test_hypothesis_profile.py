"""Properties have no deadline for a single example: on a busy machine it fails tests whose code is right."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=1)
@given(st.just(0.3))
def test_a_slow_example_is_no_failure(seconds: float) -> None:
    time.sleep(seconds)
    assert settings().deadline is None
