"""A deadline ends a long trace soon after it is over, and concerns its own thread alone."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from indexer.answers.deadline import DeadlineError, check_deadline, deadline
from indexer.reader import IndexReader
from indexer.trace.trace import TraceOptions, trace
from tests.conftest import TextRun

pytestmark = pytest.mark.alone


def test_a_long_trace_ends(text_run: TextRun) -> None:
    reader = IndexReader.open(text_run.run_dir)
    text = "the best of the " * 3000
    options = TraceOptions(min_length=1, num_hits=100, max_spans=10_000)
    trace(reader, text[:100], options=options)
    began = time.perf_counter()
    with deadline(0.3), pytest.raises(DeadlineError, match=r"within 0\.3 s"):
        trace(reader, text, options=options)
    assert time.perf_counter() - began < 3
    check_deadline()


def test_it_is_of_its_thread() -> None:
    with deadline(-1), ThreadPoolExecutor(1) as pool:
        pool.submit(check_deadline).result()
        with pytest.raises(DeadlineError):
            check_deadline()
        with deadline(10):
            check_deadline()
