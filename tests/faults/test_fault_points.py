"""Every operation of the scripted job fails: nothing acknowledged is lost, nothing is unreadable.

Here each fails in one way, in turn; `python bench/export_faults.py` lets each fail in every way.
"""

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from tests.support.crash_scenario import MODES, Fault, failure_of, operations

pytestmark = pytest.mark.alone


def test_no_fault_point_breaks_an_invariant() -> None:
    names = operations()
    faults = [Fault(at, MODES[at % len(MODES)]) for at in range(1, len(names) + 1)]
    assert len(faults) >= 400
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        failures = [failure for failure in pool.map(failure_of, faults, chunksize=32) if failure is not None]
    assert not failures, failures[:3]


def test_the_job_passes_every_kind_of_operation() -> None:
    kinds = Counter(name.split()[0] for name in operations())

    assert any("barrier-" in name for name in operations())
    assert set(kinds) >= {"create", "make_directory", "rename", "remove", "sync_directory", "write", "datasync"}
