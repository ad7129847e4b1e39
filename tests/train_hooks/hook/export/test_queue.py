"""The queue: one sync serves many steps, a full queue blocks and then stops, a barrier waits for the disk."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train_hooks.hook.export.exporters import Make, SlowWriter, go, microbatch, records, rows
from train_hooks.export_format.errors import ExportStopped, InputError
from train_hooks.export_format.verify.run import verify
from train_hooks.hook.export.exporter import Exporter


def test_the_barrier_waits_for_the_disk_and_does_not_wait_for_company(make: Make) -> None:
    exporter = make(group_interval_s=60.0)
    exporter.stage(microbatch())
    exporter.commit(1)
    began = time.monotonic()
    exporter.checkpoint_barrier(1)

    assert time.monotonic() - began < 10
    assert exporter.acknowledged_step == 1
    exporter.checkpoint_barrier(0)
    with pytest.raises(InputError, match="step 2 is not committed"):
        exporter.checkpoint_barrier(2)


def test_a_barrier_that_takes_too_long_stops_the_training(make: Make) -> None:
    exporter = make(blocked=True)
    exporter.commit(1)

    with pytest.raises(ExportStopped, match=r"not durable after 0\.05 s"):
        exporter.checkpoint_barrier(1, timeout_s=0.05)


def test_one_sync_serves_the_steps_that_came_meanwhile(make: Make) -> None:
    exporter = make(blocked=True)
    for step in range(1, 11):
        exporter.commit(step)
    go(exporter)
    exporter.checkpoint_barrier(10)

    writer: SlowWriter = exporter._writer  # type: ignore[assignment]
    assert sum(writer.appends) == 10
    assert len(writer.appends) <= 3


def _notifications(exporter: Exporter) -> list[str]:
    """Grows by one whenever this thread wakes the writer thread from now on."""
    found: list[str] = []
    notify_all = exporter._changed.notify_all

    def counted() -> None:
        if threading.current_thread() is threading.main_thread():
            found.append("woken")
        notify_all()

    exporter._changed.notify_all = counted  # type: ignore[method-assign]
    return found


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_writer_thread_is_woken_once_a_group(make: Make) -> None:
    exporter = make(group_interval_s=0.3)
    _until(lambda: exporter._writer_idle)
    woken = _notifications(exporter)
    for step in range(1, 21):
        exporter.commit(step)
        time.sleep(0.002)
    assert woken == ["woken"]
    _until(lambda: exporter.acknowledged_step == 20)  # nobody asks for it
    _until(lambda: exporter._writer_idle)
    exporter.commit(21)
    assert len(woken) == 2
    _until(lambda: exporter.acknowledged_step == 21)


def test_a_queue_half_full_does_not_wait_for_company(make: Make) -> None:
    exporter = make(group_interval_s=60.0, max_queue_bytes=10_240)
    woken = _notifications(exporter)
    for step in range(1, 6):
        assert exporter.acknowledged_step == 0
        exporter.commit(step)
    _until(lambda: exporter.acknowledged_step == 5)
    assert len(woken) <= 2


def test_a_large_group_is_written_in_parts(make: Make) -> None:
    exporter = make(blocked=True, group_bytes=3000)
    for step in range(1, 11):
        exporter.commit(step)
    go(exporter)
    exporter.checkpoint_barrier(10)

    writer: SlowWriter = exporter._writer  # type: ignore[assignment]
    assert max(writer.appends) == 2


def test_a_full_queue_blocks_and_goes_on(tmp_path: Path, make: Make) -> None:
    exporter = make(blocked=True, max_queue_bytes=5000)
    threading.Timer(0.2, lambda: go(exporter)).start()
    began = time.monotonic()
    for step in range(1, 21):
        exporter.stage(microbatch())
        exporter.commit(step)
    waited = time.monotonic() - began
    exporter.close()

    assert waited >= 0.15
    assert len(rows(tmp_path)) == 40


def test_a_queue_that_stays_full_stops_the_training_for_good(make: Make) -> None:
    exporter = make(blocked=True, max_queue_bytes=5000, block_timeout_s=0.1)

    def train() -> None:
        for step in range(1, 21):
            exporter.stage(microbatch())
            exporter.commit(step)

    with pytest.raises(ExportStopped, match=r"was full for 0\.1 s"):
        train()
    with pytest.raises(ExportStopped, match="was full"):
        exporter.commit(exporter.committed_step + 1)
    with pytest.raises(ExportStopped, match="was full"):
        exporter.record(1, {})
    go(exporter)
    with pytest.raises(ExportStopped, match="was full"):
        exporter.close()


def test_dropping_is_told_and_leaves_a_gap(tmp_path: Path, make: Make) -> None:
    exporter = make(blocked=True, max_queue_bytes=5000, when_full="drop")
    released = []
    for step in range(1, 21):
        exporter.stage(microbatch(release=lambda: released.append(1)))
        exporter.commit(step, metrics={"loss": 1.0})
    go(exporter)
    exporter.close()

    gaps = [record for record in records(tmp_path) if record.kind == "gap"]
    kept = {row.address.global_step for row in rows(tmp_path)}
    assert gaps
    assert kept.isdisjoint(gap.global_step for gap in gaps)
    assert kept | {gap.global_step for gap in gaps} == set(range(1, 21))
    assert {gap.values["num_rows"] for gap in gaps} == {2}
    assert len([record for record in records(tmp_path) if record.kind == "metrics"]) == 20
    assert len(released) == 20
    assert verify(tmp_path).exit_code == 3
